"""Draw, log-probs and objective together: what must hold at the first update, and the slow loop over everything."""

import math

import numpy as np
import pytest
import torch
from oracles.completion_masks import completion_masks

from unigrpo.learner.batch import collate
from unigrpo.learner.logprobs import token_logprobs
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.methods.loss import make_loss
from unigrpo.models import load_policy
from unigrpo.models.adapter import adapter_disabled, add_lora
from unigrpo.settings.learning import KlChoice, ObjectiveChoice, RatioChoice
from unigrpo.settings.policy import LoraSettings
from unigrpo.types import ModelInput, PolicyVersion, Prompt, Rollout, Rollouts, Span

MASK, EOS = 500, 481
ADVANTAGES = [1.2, -0.7, 0.3, -0.8]
PROMPT, VOCABULARY_RANGE = 5, (3, 490)


@pytest.fixture
def policy():
    policy = load_policy("tests/golden/llada_tiny", dtype="float32", vocabulary={"mask_token_id": MASK})
    policy.module.requires_grad_(False)
    return policy


@pytest.fixture
def batch():
    """Four responses of different lengths, each with an EOS tail."""
    generator = np.random.default_rng(0)
    rollouts = []
    for index in range(4):
        length = PROMPT + 12 + index
        token_ids = generator.integers(3, 480, length)
        token_ids[-3 - index :] = EOS
        is_open = torch.arange(length)[None] >= PROMPT
        is_completion, _ = completion_masks(torch.from_numpy(token_ids)[None], is_open, EOS)
        text = Span(kind="text", start=PROMPT, stop=length, is_open=True, vocabulary_range=VOCABULARY_RANGE)
        rollouts.append(
            Rollout(
                prompt=Prompt(id="p", kind="reason", messages=()),
                sample_index=index,
                token_ids=token_ids,
                spans=(Span(kind="prompt", start=0, stop=PROMPT), text),
                is_completion=is_completion[0].numpy(),
                committed_step=np.where(is_open[0].numpy(), 0, -1).astype(np.int32),
                committed_logprobs=np.zeros(length, dtype=np.float32),
                text="",
                image=None,
                seed=50 + index,
                policy_version=PolicyVersion(step=0, kind="adapter", sha256=""),
                is_truncated=False,
            )
        )
    return collate(Rollouts(items=tuple(rollouts), group_ids=(0,) * len(rollouts)), np.array(ADVANTAGES), EOS)


def score(policy, batch, draw, chunk=1024):
    return token_logprobs(
        policy,
        ModelInput(token_ids=draw.noisy_ids, is_padding=batch.is_padding),
        batch.token_ids,
        draw.is_scored,
        batch.range_index,
        batch.ranges,
        chunk=chunk,
    )


def objective(scores, old, ref, batch, draw):
    advantages = batch.advantages[:, None].expand(draw.is_scored.shape)[draw.is_scored]
    loss = make_loss(RatioChoice(), ObjectiveChoice(), KlChoice(coef=0.0 if ref is None else 0.04))
    return loss(scores, old, ref, advantages, draw.weight[draw.is_scored], draw.is_scored.nonzero()[:, 0])


@pytest.mark.parametrize("chunk", [4, 1024])
def test_fresh_adapter_has_ratio_one_and_kl_zero_exactly(policy, batch, chunk):
    add_lora(policy, LoraSettings(r=4), seed=0)
    draw = UniGRPO().draw(batch, 0, 1, 2, MASK)
    with torch.no_grad():
        old = score(policy, batch, draw, chunk)
        with adapter_disabled(policy):
            ref = score(policy, batch, draw, chunk)
    scores = score(policy, batch, draw, chunk)
    sums = objective(scores, old, ref, batch, draw)
    assert torch.equal((scores - old).exp(), torch.ones_like(old))
    assert sums.ratio == sums.weight and sums.kl == 0 and sums.cut == 0
    sums.loss.backward()
    gradients = [p.grad for p in policy.module.parameters() if p.requires_grad and p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def slow_objective(policies, batch, draw):
    """Row by row and token by token, in Python's float64, from full logits of each row alone."""
    total = 0.0
    for row, advantage in enumerate(ADVANTAGES):
        length = int(batch.lengths[row])
        tables = [policy.logits(draw.noisy_ids[row : row + 1, :length])[0].tolist() for policy in policies]
        terms = []
        for place in range(length):
            if draw.noisy_ids[row, place] != MASK or not batch.is_completion[row, place]:
                continue
            token, values = int(batch.token_ids[row, place]), []
            for table in tables:
                logits = table[place][slice(*VOCABULARY_RANGE)]
                top = max(logits)
                normalizer = top + math.log(sum(math.exp(value - top) for value in logits))
                values.append(table[place][token] - normalizer)
            ratio, d = math.exp(values[0] - values[1]), values[2] - values[0]
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            terms.append(-surrogate + 0.04 * (math.exp(d) - d - 1))
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(ADVANTAGES)


def perturbed(scale, seed):
    """The tiny policy in float64 with noise on its head and first projection."""
    policy = load_policy("tests/golden/llada_tiny", dtype="float32", vocabulary={"mask_token_id": MASK})
    policy.module.requires_grad_(False).double()
    generator = torch.Generator().manual_seed(seed)
    for name in ("model.transformer.ff_out.weight", "model.transformer.blocks.0.q_proj.weight"):
        weight = policy.module.get_parameter(name)
        weight += scale * weight.std() * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return policy


@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("update", [0, 1, 2])
def test_objective_equals_slow_double_loop(batch, update, chunk):
    policies = [perturbed(0.3, seed) for seed in range(3)]
    draw = UniGRPO().draw(batch, 7, update, 3, MASK)
    sums = objective(*(score(policy, batch, draw, chunk) for policy in policies), batch, draw)
    assert sums.loss.item() == pytest.approx(slow_objective(policies, batch, draw), abs=1e-10)


def test_gradient_is_zero_where_not_scored_tail_included(policy, batch):
    draw = UniGRPO(spacing="alg1").draw(batch, 0, 1, 2, MASK)
    assert (draw.noisy_ids == MASK)[batch.is_tail].all()
    with torch.no_grad():
        old = score(policy, batch, draw)
    body, kept = policy.hidden, []

    def watched(model_input):
        kept.append(body(model_input).requires_grad_())
        return kept[0]

    policy.hidden = watched
    sums = objective(score(policy, batch, draw, chunk=4), old, None, batch, draw)
    sums.loss.backward()
    moved = kept[0].grad.abs().amax(-1) > 0
    assert torch.equal(moved, draw.is_scored) and not (moved & batch.is_tail).any()


def test_true_tokens_outside_of_the_scored_positions_do_not_matter(policy, batch):
    draw = UniGRPO().draw(batch, 0, 0, 2, MASK)
    one = score(policy, batch, draw)
    other = token_logprobs(
        policy,
        ModelInput(token_ids=draw.noisy_ids, is_padding=batch.is_padding),
        batch.token_ids.masked_fill(~draw.is_scored, 0),
        draw.is_scored,
        batch.range_index,
        batch.ranges,
    )
    assert torch.equal(one, other)
