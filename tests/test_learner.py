"""One update: exactly 1 and 0 at the start, the same by any micro-batches, and never contaminated by a NaN."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import clipped_loss

from unigrpo.errors import UserError
from unigrpo.learner.batch import collate
from unigrpo.learner.learner import Learner, LearnerStoppedError
from unigrpo.learner.skipped import SkippedUpdates
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import adapter_state, add_lora
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings
from unigrpo.types import Message, PolicyVersion, Prompt, Rollout, Rollouts, Span

GOLDEN = Path(__file__).parent / "golden"
EOS = 481


def make_rollout(row, prompt_length, num_open, eos_at):
    generator = np.random.default_rng(row)
    ids = generator.integers(0, 470, prompt_length + num_open)
    if eos_at is not None:
        ids[prompt_length + eos_at :] = EOS
    is_completion = np.zeros(len(ids), dtype=bool)
    is_completion[prompt_length : prompt_length + (num_open if eos_at is None else eos_at + 1)] = True
    return Rollout(
        prompt=Prompt(id=str(row // 2), kind="reason", messages=(Message(role="user", text="x"),)),
        sample_index=row % 2,
        token_ids=ids,
        spans=(
            Span(kind="prompt", start=0, stop=prompt_length),
            Span(kind="text", start=prompt_length, stop=len(ids), is_open=True, num_denoising_steps=num_open),
        ),
        is_completion=is_completion,
        committed_step=np.where(np.arange(len(ids)) < prompt_length, -1, 0).astype(np.int32),
        committed_logprobs=np.zeros(len(ids), dtype=np.float32),
        text="",
        image=None,
        seed=row * 7919 + 1,
        policy_version=PolicyVersion(step=0, kind="adapter", sha256="0"),
        is_truncated=eos_at is None,
    )


def make_batch():
    shapes = [(5, 8, 3), (5, 8, None), (9, 8, 0), (9, 8, 6), (4, 12, None), (4, 12, 9)]
    rollouts = tuple(make_rollout(row, *shape) for row, shape in enumerate(shapes))
    advantages = np.array([1.0, -1.0, 0.5, -0.5, 0.7, -0.7])
    return collate(Rollouts(items=rollouts, group_ids=(0, 0, 1, 1, 2, 2)), advantages, EOS)


def make_learner(lora=True, dtype="float32", loss=None, **changes):
    policy = load_policy(GOLDEN / "llada_tiny", dtype=dtype, vocabulary={"mask_token_id": 500})
    if lora:
        add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    settings = LearnerSettings(**{"lr": 1e-2, "num_inner_updates": 3, "micro_batch_rows": 2, **changes})
    reference = None if lora else load_policy(GOLDEN / "llada_tiny", dtype=dtype, vocabulary={"mask_token_id": 500})
    loss = loss or clipped_loss(coef=0.04)
    return policy, Learner(policy, reference, UniGRPO(), loss, settings, num_steps=10)


def step(learner, batch, number=0):
    begun = learner.begin_batch(number, batch)
    return [begun.update(n) for n in range(begun.num_updates)]


@pytest.mark.parametrize("lora", [True, False])
def test_at_the_first_update_the_ratio_is_exactly_one_and_the_kl_exactly_zero(lora):
    _, learner = make_learner(lora)
    first, *others = step(learner, make_batch())
    assert first.sums.mean("ratio") == 1.0
    assert first.sums.mean("kl") == 0.0
    assert first.sums.mean("cut") == 0.0
    assert all(update.sums.mean("ratio") != 1.0 and update.sums.mean("kl") != 0.0 for update in others)


def test_old_logprobs_of_a_fresh_policy_equal_the_first_updates_own():
    _, learner = make_learner()
    batch = make_batch()
    begun = learner.begin_batch(0, batch)
    recomputed = learner.logprobs(batch, begun.draws[0])
    with_old = learner.update(batch, begun.draws[0], recomputed, begun.ref_logprobs[0], 0)
    assert with_old.sums.mean("ratio") == 1.0


def gradient_of(**changes):
    """The loss and the flat gradient of one draw under an adapter that is not fresh."""
    policy, learner = make_learner(**changes)
    with torch.no_grad():
        for name, weight in policy.module.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    begun = learner.begin_batch(0, make_batch())
    old = begun.old_logprobs[1] - 0.1 * torch.arange(len(begun.old_logprobs[1])).cos()
    sums = learner.gradient(begun.batch, begun.draws[1], old, begun.ref_logprobs[1])
    return sums.loss.item(), torch.cat([w.grad.flatten() for w in policy.module.parameters() if w.requires_grad])


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_micro_batches_do_not_change_the_gradient(rows):
    (loss, gradient), (other_loss, other) = gradient_of(micro_batch_rows=2), gradient_of(micro_batch_rows=rows)
    assert loss == pytest.approx(other_loss, abs=1e-6)
    assert torch.allclose(gradient, other, atol=1e-6 * float(gradient.norm()))


@dataclass(frozen=True)
class WholeRollout:
    """Every token's ratio is the mean over its rollout, so that no token stands alone."""

    is_linear: bool

    def __call__(self, log_ratio, rollout):
        total = torch.zeros(6, dtype=log_ratio.dtype).index_add(0, rollout, log_ratio)
        return (total / torch.bincount(rollout, minlength=6).clamp(min=1))[rollout].exp()


def test_a_loss_whose_tokens_depend_on_one_another_has_the_gradient_of_the_whole_draw():
    whole, in_passes = (replace(clipped_loss(coef=0.04), ratio=WholeRollout(is_linear=flag)) for flag in (True, False))
    wanted_loss, wanted = gradient_of(loss=whole, micro_batch_rows=64)
    for rows in (1, 4):
        loss, gradient = gradient_of(loss=in_passes, micro_batch_rows=rows)
        assert loss == pytest.approx(wanted_loss, abs=1e-6)
        assert torch.allclose(gradient, wanted, atol=1e-6 * float(wanted.norm()))


def test_a_penalty_to_the_old_policy_takes_no_reference_and_is_zero_before_the_policy_moves():
    _, learner = make_learner(loss=clipped_loss(coef=0.04, to="old"))
    begun = learner.begin_batch(0, make_batch())
    assert begun.ref_logprobs == (None, None, None)
    old = learner.logprobs(begun.batch, begun.draws[1])
    first, second, _ = (begun.update(n) for n in range(3))
    assert first.sums.kl == 0.0 and second.sums.kl > 0.0
    assert torch.equal(old, begun.old_logprobs[1])


def test_a_version_for_a_shared_policy_says_the_step_and_hashes_nothing():
    policy, learner = make_learner()
    assert learner.version(3) == PolicyVersion(step=3, kind="adapter", sha256="")
    state, version = learner.weights(3)
    assert version.sha256 and state.keys() == adapter_state(policy).keys()


def test_the_tail_gets_no_gradient_but_is_noised():
    _, learner = make_learner()
    batch = make_batch()
    for draw in learner.begin_batch(0, batch).draws:
        assert not (draw.is_scored & ~batch.is_completion).any()
        is_noised = draw.noisy_ids != batch.token_ids
        assert not (is_noised & (batch.is_prompt | batch.is_padding)).any()
    ratios = [draw.mask_ratio.max() for draw in learner.begin_batch(0, batch).draws]
    assert max(ratios) > 0.6
    assert any((draw.noisy_ids[batch.is_tail] == 500).any() for draw in learner.begin_batch(0, batch).draws)


def test_a_non_finite_gradient_leaves_the_weights_and_is_counted():
    policy, learner = make_learner(max_skipped_updates=1)
    batch = make_batch()
    begun = learner.begin_batch(0, batch)
    draw, ref = begun.draws[1], begun.ref_logprobs[1]
    before = adapter_state(policy)
    bad = torch.full((int(draw.is_scored.sum()),), float("nan"))
    assert learner.update(batch, draw, bad, ref, 0).is_skipped
    after = adapter_state(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(LearnerStoppedError, match=r"lower learner\.lr"):
        learner.update(batch, draw, bad, ref, 0)


def test_a_nan_in_every_second_update_stops_the_run_and_one_in_a_hundred_does_not():
    seldom, often = SkippedUpdates(max_skipped=3), SkippedUpdates(max_skipped=3)
    for update in range(1000):
        seldom.take(update // 2, "the gradient is" if update % 100 == 0 else "")
    with pytest.raises(LearnerStoppedError, match=r"step 4: 4 of the last 7 .* the gradient is not finite"):
        for update in range(1000):
            often.take(update // 2, "the gradient is" if update % 2 == 0 else "")


def test_a_skipped_update_says_what_was_not_finite():
    _, learner = make_learner(max_skipped_updates=9)
    batch = make_batch()
    begun = learner.begin_batch(0, batch)
    draw, old, ref = begun.draws[1], begun.old_logprobs[1], begun.ref_logprobs[1]
    nan = torch.full_like(old, float("nan"))
    wrong = replace(draw, weight=draw.weight * float("inf"))
    no_advantages = replace(batch, advantages=batch.advantages * float("nan"))
    updates = [
        (batch, draw, nan, ref),
        (batch, draw, old, nan),
        (no_advantages, draw, old, ref),
        (batch, wrong, old, ref),
    ]
    found = [learner.update(*update, 0).skipped_because for update in updates]
    assert found == [
        "the log-probs of the old policy are",
        "the log-probs of the reference are",
        "the advantages are",
        "the weights of the estimator are",
    ]
    assert learner.update(batch, draw, old, ref, 0).skipped_because == ""


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stops_the_run_at_its_first_update_by_name(lora, value):
    policy, learner = make_learner(lora)
    name, weight = next((name, w) for name, w in policy.module.named_parameters() if w.dim() == 2 and "blocks" in name)
    with torch.no_grad():
        weight[0, 0] = value
    with pytest.raises(LearnerStoppedError, match=f"step 1: weights of the policy are not finite, in {name}"):
        step(learner, make_batch())


def test_an_estimator_whose_weights_are_not_finite_is_refused_by_name():
    class Careless(UniGRPO):
        def draw(self, *arguments):
            draw = UniGRPO().draw(*arguments)
            return replace(draw, weight=draw.weight * float("nan"))

    _, learner = make_learner()
    learner._estimator = Careless()
    with pytest.raises(UserError, match="estimator Careless gave weights that are not finite at step 1"):
        learner.begin_batch(0, make_batch())


def without_scored(draw, rows):
    """The draw with nothing scored in some rows; the other rows keep their weights."""
    is_scored, weight = draw.is_scored.clone(), draw.weight.clone()
    is_scored[rows], weight[rows] = False, 0.0
    return replace(draw, is_scored=is_scored, weight=weight)


@pytest.mark.parametrize("is_linear", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [True, False])
def test_a_micro_batch_without_a_scored_token_adds_nothing(lora, checkpointing, is_linear):
    loss = replace(clipped_loss(coef=0.04), ratio=WholeRollout(is_linear=is_linear))
    found = {}
    for rows in (1, 2, 64):
        policy, learner = make_learner(lora, loss=loss, micro_batch_rows=rows)
        if checkpointing:
            policy.recompute_blocks(True)
        batch = make_batch()
        draw = without_scored(learner.begin_batch(0, batch).draws[1], [0, 1, 3])
        sums = learner.gradient(batch, draw, learner.logprobs(batch, draw) - 0.1, learner.logprobs(batch, draw) + 0.1)
        gradient = torch.cat([w.grad.flatten() for w in policy.module.parameters() if w.grad is not None])
        found[rows] = sums.loss.item(), gradient
    for loss_value, gradient in found.values():
        assert loss_value == pytest.approx(found[64][0], abs=1e-6)
        assert torch.isfinite(gradient).all() and torch.allclose(gradient, found[64][1], atol=1e-6)


@pytest.mark.parametrize("is_linear", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_a_draw_without_a_scored_token_and_groups_without_advantages_leave_the_weights(lora, is_linear):
    loss = replace(clipped_loss(coef=0.0), ratio=WholeRollout(is_linear=is_linear))
    policy, learner = make_learner(lora, loss=loss)
    batch = make_batch()
    before = {name: weight.detach().clone() for name, weight in policy.module.named_parameters()}
    draw = learner.begin_batch(0, batch).draws[1]
    nothing = without_scored(draw, slice(None))
    empty = learner.update(batch, nothing, learner.logprobs(batch, nothing), None, 0)
    flat = replace(batch, advantages=torch.zeros_like(batch.advantages))
    level = learner.update(flat, draw, learner.logprobs(flat, draw), None, 0)
    for stats in (empty, level):
        assert stats.sums.loss == 0 and stats.grad_norm == 0 and not stats.is_skipped
    assert empty.num_scored == 0
    assert all(torch.equal(before[name], weight) for name, weight in policy.module.named_parameters())


@pytest.mark.parametrize("lora", [True, False])
def test_a_learner_restored_from_its_folder_goes_on_bit_for_bit(lora, tmp_path):
    batch = make_batch()
    _, learner = make_learner(lora)
    step(learner, batch, 0)
    learner.save(tmp_path)
    step(learner, batch, 1)
    _, other = make_learner(lora)
    other.load(tmp_path)
    step(other, batch, 1)
    assert learner.weights(2)[1] == other.weights(2)[1]


def test_rewarded_rows_become_likelier_and_punished_rows_less_likely():
    _, learner = make_learner(lr=3e-3)
    batch = make_batch()
    draw = learner.begin_batch(0, batch).draws[1]

    def row_logprobs():
        flat = learner.logprobs(batch, draw)
        rows = draw.is_scored.nonzero()[:, 0]
        return torch.zeros(6).index_add_(0, rows, flat)

    before = row_logprobs()
    for number in range(5):
        step(learner, batch, number)
    change = row_logprobs() - before
    has_any = draw.is_scored.any(1)
    assert ((change * batch.advantages > 0) | ~has_any).all()
