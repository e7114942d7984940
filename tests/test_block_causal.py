"""The block-causal engine's promises: with or without cache, alone or in company, padded or not, the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from unigrpo.learner.logprobs import token_logprobs
from unigrpo.models import load_policy
from unigrpo.models.policies.sdar import SdarPolicy
from unigrpo.rollouts import sample, sample_ids
from unigrpo.settings.tasks import OrderChoice, SamplingSettings
from unigrpo.types import Canvas, ModelInput, Span

GOLDEN = Path(__file__).parent / "golden"
MASK, EOS = 500, 491
WARM: dict[str, Any] = {"num_denoising_steps": 12, "temperature": 1.0}


@pytest.fixture(scope="module")
def policy() -> SdarPolicy:
    return load_policy(GOLDEN / "sdar_tiny", dtype="float32")  # type: ignore[return-value]


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 480, (length,), generator=torch.Generator().manual_seed(seed))


def canvas(length: int, num_open: int, seed: int = 0) -> Canvas:
    ids = functional.pad(prompt(length, seed), (0, num_open), value=MASK).numpy()
    steps = 3 * -(-num_open // 4)
    given = Span(kind="prompt", start=0, stop=length)
    text = Span(
        kind="text", start=length, stop=length + num_open, is_open=True, num_denoising_steps=steps, block_length=4
    )
    return Canvas(token_ids=ids, spans=(given, text))


ORDERS = ["low_confidence", "sequential", "random", "low_confidence_dynamic", "entropy"]


@pytest.mark.parametrize("remasking", ORDERS)
@pytest.mark.parametrize("length", [5, 8])
def test_cache_changes_no_token(policy: SdarPolicy, remasking: Any, length: int) -> None:
    ids = functional.pad(torch.stack([prompt(length), prompt(length), prompt(length, 1)]), (0, 16), value=MASK)
    settings = {**WARM, "remasking": remasking, "threshold": 0.05}
    kept = sample_ids(policy, ids, **settings)
    anew = sample_ids(policy, ids, use_cache=False, **settings)
    assert torch.equal(kept.token_ids, anew.token_ids)
    assert torch.equal(kept.committed_step, anew.committed_step)
    assert torch.allclose(kept.committed_logprobs, anew.committed_logprobs, atol=1e-5)
    assert not (kept.token_ids == MASK).any()


def test_finished_blocks_and_equal_prompts_go_through_the_model_once(policy: SdarPolicy) -> None:
    ids = functional.pad(torch.stack([prompt(40)] * 4 + [prompt(40, 1)]), (0, 16), value=MASK)
    sizes: list[int] = []
    handle = policy.module.model.embed_tokens.register_forward_hook(
        lambda _module, inputs, _output: sizes.append(inputs[0].numel())
    )
    sample_ids(policy, ids, **WARM)
    handle.remove()
    first, *others = sizes
    assert first == 2 * 44, "two prompts and their first block"
    assert sum(others) == 5 * (2 * 4 + 3 * (8 + 2 * 4)), "then each finished block once, with the next"


def test_rows_of_different_prompts_equal_each_row_alone(policy: SdarPolicy) -> None:
    canvases = [canvas(3, 9, 0), canvas(8, 8, 1), canvas(14, 10, 2), canvas(8, 8, 1)]
    sampling = SamplingSettings(
        completion_length=8,
        num_denoising_steps=8,
        remasking=OrderChoice(use="low_confidence_dynamic", threshold=0.05),
        stop_at_eos=False,
    )
    together = sample(policy, canvases, sampling, [1, 2, 3, 4])
    for row, each in enumerate(canvases):
        alone = sample(policy, [each], sampling, [row + 1])
        length = len(each.token_ids)
        assert torch.equal(together.token_ids[row, :length], alone.token_ids[0])
        assert torch.equal(together.committed_step[row, :length], alone.committed_step[0])
    assert not torch.equal(together.token_ids[1], together.token_ids[3]), "another seed"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_rows_tokens_do_not_depend_on_padding(policy: SdarPolicy, side: str, use_cache: bool) -> None:
    ids = functional.pad(torch.stack([prompt(6), prompt(6, 1)]), (0, 10), value=MASK)
    plain = sample_ids(policy, ids, **{**WARM, "num_denoising_steps": 9}, use_cache=use_cache).token_ids
    width = (3, 0) if side == "left" else (0, 3)
    padded = sample_ids(
        policy,
        functional.pad(ids, width, value=7),
        is_padding=functional.pad(torch.zeros_like(ids, dtype=torch.bool), width, value=True),
        use_cache=use_cache,
        **{**WARM, "num_denoising_steps": 9},
    ).token_ids
    assert torch.equal(padded[:, 3:] if side == "left" else padded[:, :-3], plain)


def test_stopping_at_eos_changes_nothing_up_to_it_and_saves_passes(policy: SdarPolicy) -> None:
    ids = functional.pad(torch.stack([prompt(6, seed) for seed in range(12)]), (0, 22), value=MASK)
    settings: dict[str, Any] = {"num_denoising_steps": 12, "temperature": 1.0, "vocabulary_range": (490, 493)}
    whole = sample_ids(policy, ids, **settings)
    stopped = sample_ids(policy, ids, stop_at_eos=True, **settings)
    assert stopped.num_forward_rows < whole.num_forward_rows
    ends = 0
    for row in range(12):
        places = (whole.token_ids[row, 6:] == EOS).nonzero()
        end = 6 + int(places[0]) + 1 if len(places) else 28
        ends += len(places) > 0
        assert torch.equal(whole.token_ids[row, :end], stopped.token_ids[row, :end])
        assert (stopped.token_ids[row, end:] == EOS).all()
    assert ends > 6


def test_given_tokens_inside_the_span_stay_and_full_blocks_cost_nothing(policy: SdarPolicy) -> None:
    ids = functional.pad(prompt(8)[None], (0, 16), value=MASK)
    ids[0, 12:16] = torch.arange(4)
    ids[0, 21] = 77
    out = sample_ids(policy, ids, num_denoising_steps=16)
    is_given = ids != MASK
    assert torch.equal(out.token_ids[is_given], ids[is_given])
    assert (out.committed_step[is_given] == -1).all()
    assert out.num_forward_rows == 4 + 4 + 3
    anew = sample_ids(policy, ids, num_denoising_steps=16, use_cache=False)
    assert torch.equal(out.token_ids, anew.token_ids)


def test_a_span_that_ends_inside_a_block_sees_no_more_than_its_row(policy: SdarPolicy) -> None:
    ids = functional.pad(prompt(7)[None], (0, 6), value=MASK)
    out = sample_ids(policy, ids, num_denoising_steps=8, remasking="sequential")
    anew = sample_ids(policy, ids, num_denoising_steps=8, remasking="sequential", use_cache=False)
    assert torch.equal(out.token_ids, anew.token_ids)
    row = torch.cat((out.token_ids[:, :12], torch.tensor([[MASK]])), dim=1)
    assert out.token_ids[0, 12] == policy.logits(row)[0, 12].argmax()


@torch.no_grad()
def test_committed_logprobs_are_the_learners_own_at_the_committing_state(policy: SdarPolicy) -> None:
    ids = functional.pad(torch.stack([prompt(6), prompt(6, 1)]), (0, 14), value=MASK)
    out = sample_ids(policy, ids, num_denoising_steps=8, temperature=1.0)
    committed, num_scored = out.committed_step, 0
    for step in range(2):
        # One state of every block at once: what its own step `step` committed is scored, what came later is noise.
        in_block = torch.where(committed >= 0, committed % 2, -1)
        noisy = torch.where(in_block >= step, MASK, out.token_ids)
        is_scored = in_block == step
        model_input = ModelInput(token_ids=noisy, clean_ids=out.token_ids)
        found = token_logprobs(policy, model_input, out.token_ids, is_scored)
        torch.testing.assert_close(found, out.committed_logprobs[is_scored], atol=1e-5, rtol=0)
        num_scored += int(is_scored.sum())
    assert num_scored == 28


def test_mask_token_is_never_drawn_over_all_of_the_vocabulary(policy: SdarPolicy) -> None:
    twisted = load_policy(GOLDEN / "sdar_tiny", dtype="float32")
    ids = functional.pad(prompt(8)[None], (0, 8), value=MASK)
    with torch.no_grad():
        twisted.module.lm_head.weight[MASK] = 4 * twisted.hidden(ModelInput(token_ids=ids))[0, -1]
    assert (twisted.logits(ids)[0, 8:].argmax(-1) == MASK).any()
    for temperature in (0.0, 1.0):
        out = sample_ids(twisted, ids, num_denoising_steps=4, temperature=temperature)
        assert not (out.token_ids == MASK).any()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"num_denoising_steps": 4, "guidance_scale": 1.0}, "without guidance"),
        ({"num_denoising_steps": 5}, "multiple of 2"),
        ({"num_denoising_steps": 12}, "at most 4 a block"),
        ({"num_denoising_steps": 4, "remasking": "origin"}, "is for full attention"),
        ({"num_denoising_steps": 4, "schedule": "cosine"}, "such as linear, not Cosine"),
        ({"num_denoising_steps": 4, "remasking_temperature": 1.0}, "without remasking noise"),
    ],
)
def test_impossible_settings_are_errors_that_say_what_is_wanted(
    policy: SdarPolicy, arguments: dict[str, Any], wanted: str
) -> None:
    ids = functional.pad(prompt(8)[None], (0, 8), value=MASK)
    with pytest.raises(ValueError, match=wanted):
        sample_ids(policy, ids, **arguments)


def test_full_attention_refuses_editing() -> None:
    policy = load_policy(GOLDEN / "llada_tiny", dtype="float32", vocabulary={"mask_token_id": MASK})
    ids = functional.pad(prompt(8)[None], (0, 8), value=MASK)
    with pytest.raises(ValueError, match="for block-causal policies"):
        sample_ids(policy, ids, num_denoising_steps=8, editing_threshold=0.9)


def test_full_attention_commits_whatever_is_above_the_threshold() -> None:
    policy = load_policy(GOLDEN / "llada_tiny", dtype="float32", vocabulary={"mask_token_id": MASK})
    ids = functional.pad(prompt(8)[None], (0, 8), value=MASK)
    settings: dict[str, Any] = {"num_denoising_steps": 8, "remasking": "low_confidence_dynamic"}
    assert torch.equal(
        sample_ids(policy, ids, threshold=0.9999, **settings).token_ids,
        sample_ids(policy, ids, num_denoising_steps=8).token_ids,
    )
    everything = sample_ids(policy, ids, threshold=1e-9, **settings)
    assert everything.num_forward_rows == 1
    assert torch.equal(everything.token_ids[0, 8:], policy.logits(ids)[0, 8:].argmax(-1))
