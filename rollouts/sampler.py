"""Generation by iterative unmasking: one `sample` for text, picture questions, pictures and inpainting.

A canvas holds the mask token wherever something is to be generated. Its open spans are filled in order, each span block
by block, each block over its share of the denoising steps: one pass through the model, a token sampled at every masked
position of the block, and some of them committed. Only those positions go through the head.

Three choices are independent: which positions are committed (`orders`), how many a step (`schedules`), and what goes
through the model, the whole row (`recompute`) or only what a block-causal policy has not kept (`block_causal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from unigrpo.errors import UserError
from unigrpo.models.pictures.features import shift_ids
from unigrpo.rollouts.engines.block_causal import BlockCausal
from unigrpo.rollouts.engines.entropy_bound import EntropyBound
from unigrpo.rollouts.engines.recompute import Recompute
from unigrpo.rollouts.layout import Layout, layout_of_canvases, layout_of_ids
from unigrpo.rollouts.state import MAX_EDITING_ROUNDS, SamplerState
from unigrpo.settings.tasks import OrderChoice, SamplingSettings, ScheduleChoice
from unigrpo.types import Canvas

if TYPE_CHECKING:
    from unigrpo.models.base import BlockCausalPolicy, Policy, UniformPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOutput:
    """What ``sample`` filled in."""

    token_ids: torch.Tensor
    """[N, L] int64."""
    committed_step: torch.Tensor
    """[N, L] int32: the denoising step that committed each token; -1 where given."""
    committed_logprobs: torch.Tensor
    """[N, L] float32, nats: un-tempered, unguided, over the span's range; 0 where given."""
    num_forward_rows: int
    """Rows that went through the model, guidance counted twice."""


def sample(
    policy: Policy,
    canvases: Sequence[Canvas],
    sampling: SamplingSettings,
    seeds: Sequence[int],
    *,
    use_cache: bool = True,
    max_editing_rounds: int = MAX_EDITING_ROUNDS,
) -> SampleOutput:
    """Fill every mask token of the open spans.

    A row's tokens depend neither on its neighbours nor on padding: noise is keyed by row seed, denoising step and
    position in the row.

    Args:
        policy: any masked-diffusion policy.
        canvases: N rows with the same open spans, which hold their own steps, blocks, schedules and vocabulary ranges.
        sampling: everything else: temperatures, guidance, order, editing, where to stop.
        seeds: [N].
        use_cache: keep keys and values of finished blocks, where the policy is block-causal, and of prompts that see
            only themselves: same tokens, less work.
        max_editing_rounds: passes over a block without masks, which end when one changes nothing.

    Raises:
        UserError: for lengths that do not divide into blocks or steps, or what the policy's engine does not do.
    """
    layout = layout_of_canvases(
        canvases,
        policy.vocabulary,
        policy.device,
        needs_twin=sampling.guidance_scale > 0,
        attention_block=_attention_block(policy),
    )
    return _fill(policy, layout, sampling, seeds, use_cache, max_editing_rounds)


def sample_ids(
    policy: Policy,
    token_ids: torch.Tensor,
    *,
    num_denoising_steps: int,
    block_length: int | None = None,
    temperature: float = 0.0,
    guidance_scale: float = 0.0,
    remasking: str = "low_confidence",
    is_padding: torch.Tensor | None = None,
    unconditional_ids: torch.Tensor | None = None,
    unconditional_is_padding: torch.Tensor | None = None,
    vocabulary_range: tuple[int, int] | None = None,
    schedule: str = "linear",
    schedule_shift: float | None = None,
    remasking_temperature: float = 0.0,
    threshold: float | None = None,
    editing_threshold: float | None = None,
    max_editing_rounds: int = MAX_EDITING_ROUNDS,
    use_cache: bool = True,
    stop_at_eos: bool = False,
    seeds: Sequence[int] | None = None,
) -> SampleOutput:
    """Fill every mask token of rows of ids, as `sample` does: the form of the released samplers.

    At temperature 0 the tokens are those of the released samplers of LLaDA and MMaDA.

    Args:
        policy: any masked-diffusion policy.
        token_ids: [N, L] int64 with the mask token at the open positions, as many in every row.
        num_denoising_steps: total over all blocks; a multiple of the number of blocks.
        block_length: positions filled before the next block starts; None is one block.
        temperature: of sampling; 0 is greedy.
        guidance_scale: 0 is none. Without ``unconditional_ids`` the twin is the row with all given tokens masked.
        remasking: the name of an order (`unigrpo.rollouts.orders`).
        is_padding: [N, L] bool, positions that nothing attends to.
        unconditional_ids: [N, L] int64 twin for guidance; its open positions are ignored.
        unconditional_is_padding: [N, L] bool; None takes the twin's picture-padding tokens where the policy has
            such a token, else ``is_padding``.
        vocabulary_range: half-open range of ids that may be sampled; None is the whole vocabulary.
        schedule: the name of a schedule (`unigrpo.rollouts.schedules`).
        schedule_shift: of the schedule ``shift``; others do not read it, as in the released samplers.
        remasking_temperature: initial temperature of Gumbel noise on the scores.
        threshold: of the order ``low_confidence_dynamic``; others do not read it, as in the released samplers.
        editing_threshold: see `unigrpo.settings.tasks.SamplingSettings`; for block-causal policies.
        max_editing_rounds: see `sample`.
        use_cache: see `sample`.
        stop_at_eos: stop at the first EOS and fill the rest with EOS; tokens up to it are unchanged.
        seeds: [N]; None is 0..N-1.

    Raises:
        ValueError: see `sample`; for rows of different make-up; for a setting that is out of its range.
    """
    shifted = {} if schedule_shift is None or schedule != "shift" else {"shift": schedule_shift}
    above = {} if threshold is None or remasking != "low_confidence_dynamic" else {"threshold": threshold}
    is_masked = token_ids == policy.vocabulary.mask_token_id
    sampling = SamplingSettings(
        completion_length=max(1, int(is_masked.sum(dim=1).max())),
        num_denoising_steps=num_denoising_steps,
        block_length=block_length,
        temperature=temperature,
        guidance_scale=guidance_scale,
        remasking=OrderChoice(use=remasking, **above),
        remasking_temperature=remasking_temperature,
        schedule=ScheduleChoice(use=schedule, **shifted),
        editing_threshold=editing_threshold,
        stop_at_eos=stop_at_eos,
    )
    layout = layout_of_ids(
        token_ids.to(policy.device),
        policy.vocabulary,
        sampling,
        is_padding=is_padding,
        unconditional_ids=unconditional_ids,
        unconditional_is_padding=unconditional_is_padding,
        vocabulary_range=vocabulary_range,
        attention_block=_attention_block(policy),
    )
    return _fill(
        policy, layout, sampling, range(len(token_ids)) if seeds is None else seeds, use_cache, max_editing_rounds
    )


def _attention_block(policy: Policy) -> int | None:
    is_block_causal = policy.abilities.attention == "block_causal"
    return cast("BlockCausalPolicy", policy).block_length if is_block_causal else None


@torch.no_grad()
def _fill(
    policy: Policy,
    layout: Layout,
    sampling: SamplingSettings,
    seeds: Sequence[int],
    use_cache: bool,
    max_editing_rounds: int,
) -> SampleOutput:
    num_rows = layout.token_ids.shape[0]
    if len(seeds) != num_rows:
        raise UserError(f"{len(seeds)} seeds for {num_rows} rows: give one seed a row")
    keys = torch.tensor(list(seeds), dtype=torch.int64, device=policy.device)
    state = SamplerState(policy, layout, keys, sampling, max_editing_rounds)
    _run_engine(state, use_cache)
    filled = state.ids
    if layout.feature_offsets is not None:
        filled = shift_ids(state.ids, -layout.feature_offsets, policy.vocabulary.size)
    return SampleOutput(
        token_ids=filled,
        committed_step=state.committed_step,
        committed_logprobs=state.committed_logprobs,
        num_forward_rows=state.num_forward_rows,
    )


def _run_engine(state: SamplerState, use_cache: bool) -> None:
    """Run the engine that the policy's attention allows.

    Raises:
        UserError: several spans for a policy that fills one, or editing for one that does not edit.
    """
    plans, abilities = state.layout.plans, state.policy.abilities
    if abilities.corruption == "uniform":
        EntropyBound(state, cast("UniformPolicy", state.policy)).fill()
        return
    if state.sampling.editing_threshold is not None and not abilities.is_edited:
        raise UserError("editing_threshold is for block-causal policies; leave it out")
    if abilities.attention == "block_causal":
        if len(plans) != 1:
            raise UserError(f"the canvases have {len(plans)} open spans; a block-causal policy fills one span of text")
        BlockCausal(state, cast("BlockCausalPolicy", state.policy), plans[0], use_cache=use_cache).fill()
        return
    engine = Recompute(state, use_cache=use_cache)
    for plan in plans:
        engine.fill(plan)
