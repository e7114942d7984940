"""One update: exactly 1 and 0 at the start, the same by any micro-batches, and never contaminated by a NaN."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unigrpo.learner.batch import collate
from unigrpo.learner.group import LearnerGroup
from unigrpo.learner.learner import Learner, LearnerStoppedError
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import adapter_state, add_lora
from unigrpo.settings import LearnerSettings, LoraSettings, ObjectiveSettings
from unigrpo.types import Message, PolicyVersion, Prompt, Rollout, Span

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
    rollouts = [make_rollout(row, *shape) for row, shape in enumerate(shapes)]
    advantages = np.array([1.0, -1.0, 0.5, -0.5, 0.7, -0.7])
    return collate(rollouts, advantages, EOS, [0, 0, 1, 1, 2, 2])


def make_learner(lora=True, dtype="float32", **changes):
    policy = load_policy(GOLDEN / "llada_tiny", dtype=dtype, vocabulary={"mask_token_id": 500})
    if lora:
        add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    settings = LearnerSettings(**{"lr": 1e-2, "num_inner_updates": 3, "micro_batch_rows": 2, **changes})
    reference = None if lora else load_policy(GOLDEN / "llada_tiny", dtype=dtype, vocabulary={"mask_token_id": 500})
    return policy, Learner(policy, reference, UniGRPO(), ObjectiveSettings(kl_coef=0.04), settings, num_steps=10)


def step(learner, batch, number=0):
    draws = learner.draw(batch, number)
    old, ref = learner.old_logprobs(batch, draws), learner.ref_logprobs(batch, draws)
    return [learner.update(batch, *parts, number) for parts in zip(draws, old, ref, strict=True)]


@pytest.mark.parametrize("lora", [True, False])
def test_at_the_first_update_the_ratio_is_exactly_one_and_the_kl_exactly_zero(lora):
    _, learner = make_learner(lora)
    first, *others = step(learner, make_batch())
    assert first.ratio_mean == 1.0
    assert first.kl == 0.0
    assert first.clip_fraction == 0.0
    assert all(update.ratio_mean != 1.0 and update.kl != 0.0 for update in others)


def test_old_logprobs_of_a_fresh_policy_equal_the_first_updates_own():
    _, learner = make_learner()
    batch = make_batch()
    draws = learner.draw(batch, 0)
    recomputed = learner._logprobs(learner._policy, batch, draws[0])
    with_old = learner.update(batch, draws[0], recomputed, None, 0)
    assert with_old.ratio_mean == 1.0


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_micro_batches_do_not_change_the_gradient(rows):
    def gradients(micro_batch_rows):
        policy, learner = make_learner(micro_batch_rows=micro_batch_rows)
        with torch.no_grad():
            for name, weight in policy.module.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.01)
        batch = make_batch()
        draw = learner.draw(batch, 0)[1]
        ref = learner.ref_logprobs(batch, [draw])[0]
        loss, _ = learner._accumulate(batch, draw, None, ref)
        return loss, torch.cat([w.grad.flatten() for w in policy.module.parameters() if w.requires_grad])

    (loss, gradient), (other_loss, other) = gradients(2), gradients(rows)
    assert loss == pytest.approx(other_loss, abs=1e-6)
    assert torch.allclose(gradient, other, atol=1e-6 * float(gradient.norm()))


def test_the_tail_gets_no_gradient_but_is_noised():
    _, learner = make_learner()
    batch = make_batch()
    for draw in learner.draw(batch, 0):
        assert not (draw.is_scored & ~batch.is_completion).any()
        is_noised = draw.noisy_ids != batch.token_ids
        assert not (is_noised & (batch.is_prompt | batch.is_padding)).any()
    ratios = [draw.mask_ratio.max() for draw in learner.draw(batch, 0)]
    assert max(ratios) > 0.6
    assert any((draw.noisy_ids[batch.is_tail] == 500).any() for draw in learner.draw(batch, 0))


def test_a_non_finite_gradient_leaves_the_weights_and_is_counted():
    policy, learner = make_learner(max_skipped_updates=1)
    batch = make_batch()
    draw = learner.draw(batch, 0)[1]
    before = adapter_state(policy)
    bad = torch.full((int(draw.is_scored.sum()),), float("nan"))
    assert learner.update(batch, draw, bad, None, 0).is_skipped
    after = adapter_state(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(LearnerStoppedError, match=r"lower learner\.lr"):
        learner.update(batch, draw, bad, None, 0)


@pytest.mark.parametrize("lora", [True, False])
def test_a_learner_restored_from_its_state_goes_on_bit_for_bit(lora):
    batch = make_batch()
    policy, learner = make_learner(lora)
    group = LearnerGroup(policy, learner)
    step(learner, batch, 0)
    weights, optimizer = group.state()
    step(learner, batch, 1)
    other_policy, other = make_learner(lora)
    other_group = LearnerGroup(other_policy, other)
    other_group.load_state(weights, optimizer)
    step(other, batch, 1)
    assert group.weights(2)[1] == other_group.weights(2)[1]


def test_rewarded_rows_become_likelier_and_punished_rows_less_likely():
    policy, learner = make_learner(lr=3e-3)
    batch = make_batch()
    draw = learner.draw(batch, 0)[1]

    def row_logprobs():
        flat = learner._logprobs(policy, batch, draw)
        rows = draw.is_scored.nonzero()[:, 0]
        return torch.zeros(6).index_add_(0, rows, flat)

    before = row_logprobs()
    for number in range(5):
        step(learner, batch, number)
    change = row_logprobs() - before
    has_any = draw.is_scored.any(1)
    assert ((change * batch.advantages > 0) | ~has_any).all()
