"""Generation by iterative unmasking: one ``sample()`` for text, picture questions, pictures and inpainting.

A canvas holds the mask token wherever something is to be generated. Its open spans are filled in order, each span block
by block, each block over its share of the denoising steps: one pass through the model, a token drawn at every masked
position of the block, and some of them committed. Only those positions go through the head.

Three choices are independent: which positions are committed (`selection`), how many a step (`schedules`), and what goes
through the model, the whole row (`recompute`) or only what a block-causal policy has not kept (`block_causal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from unigrpo.models.pictures.features import shift_ids
from unigrpo.rollouts.engines.block_causal import BlockCausal
from unigrpo.rollouts.engines.entropy_bound import EntropyBound
from unigrpo.rollouts.engines.recompute import Recompute
from unigrpo.rollouts.filling import Filling, HowToFill
from unigrpo.rollouts.layout import plan_of_ids, plans_of_canvases
from unigrpo.types import Canvas, Remasking, Schedule

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


@torch.no_grad()
def sample(
    policy: Policy,
    token_ids: torch.Tensor | Sequence[Canvas],
    *,
    num_denoising_steps: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    guidance_scale: float = 0.0,
    remasking: Remasking = "low_confidence",
    is_padding: torch.Tensor | None = None,
    unconditional_ids: torch.Tensor | None = None,
    unconditional_is_padding: torch.Tensor | None = None,
    vocabulary_range: tuple[int, int] | None = None,
    schedule: Schedule = "linear",
    schedule_shift: float = 3.0,
    remasking_temperature: float = 0.0,
    threshold: float = 0.9,
    editing_threshold: float | None = None,
    max_editing_rounds: int = 16,
    use_cache: bool = True,
    stop_at_eos: bool = False,
    seeds: Sequence[int] | None = None,
) -> SampleOutput:
    """Fill every mask token of the open spans.

    At temperature 0 the tokens are those of the released samplers of LLaDA and MMaDA. A row's tokens depend neither on
    its neighbours nor on padding: noise is keyed by (row seed, denoising step, position in the row).

    Args:
        policy: any masked-diffusion policy.
        token_ids: [N, L] int64 with the mask token at the open positions, or canvases with the same open spans (then
            the next arguments that a span holds come from the canvas and must not be given).
        num_denoising_steps: total over all blocks; a multiple of the number of blocks.
        block_length: positions filled before the next block starts; None is one block.
        temperature: of the token draw; 0 is greedy.
        guidance_scale: 0 is none. Without ``unconditional_ids`` the twin is the row with all given tokens masked.
        remasking: which positions a step commits (`unigrpo.types.Remasking`).
        is_padding: [N, L] bool, positions that nothing attends to.
        unconditional_ids: [N, L] int64 twin for guidance; its open positions are ignored.
        unconditional_is_padding: [N, L] bool; None takes the twin's picture-padding tokens where the policy has
            such a token, else ``is_padding``.
        vocabulary_range: half-open range of ids that may be drawn; None is the whole vocabulary.
        schedule: "linear" (text), "cosine" or "pow2" (pictures), "dream", "shift" or "sine" (LaViDa).
        schedule_shift: of "shift".
        remasking_temperature: initial temperature of Gumbel noise on the scores.
        threshold: probability above which "low_confidence_dynamic" commits a token beyond the schedule's count.
        editing_threshold: probability above which a token that is there already is replaced by another while its block
            is worked on (LLaDA2.1); None is never. For block-causal policies.
        max_editing_rounds: passes over a block without masks, which end when one changes nothing.
        use_cache: keep keys and values of finished blocks, where the policy is block-causal, and of prompts that see
            only themselves: same tokens, less work.
        stop_at_eos: stop a text span at its first EOS and fill the rest with EOS; tokens up to it are unchanged.
        seeds: [N] row seeds; None is 0..N-1.

    Raises:
        ValueError: for lengths that do not divide into blocks or steps, or settings given twice.
    """
    device = policy.device
    is_block_causal = policy.abilities.attention == "block_causal"
    attention_block = cast("BlockCausalPolicy", policy).block_length if is_block_causal else None
    if isinstance(token_ids, torch.Tensor):
        if num_denoising_steps is None:
            raise ValueError("num_denoising_steps is missing: give the total number of denoising steps over all blocks")
        layout = plan_of_ids(
            token_ids.to(device),
            is_padding,
            unconditional_ids,
            unconditional_is_padding,
            policy.vocabulary,
            num_denoising_steps=num_denoising_steps,
            block_length=block_length,
            schedule=schedule,
            schedule_shift=schedule_shift,
            vocabulary_range=vocabulary_range,
            needs_twin=guidance_scale > 0,
            attention_block=attention_block,
        )
    else:
        if num_denoising_steps is not None or block_length is not None or vocabulary_range is not None:
            raise ValueError("a canvas holds its own steps, blocks and vocabulary range: leave those arguments out")
        layout = plans_of_canvases(
            token_ids, policy.vocabulary, device, needs_twin=guidance_scale > 0, attention_block=attention_block
        )
    num_rows = layout.token_ids.shape[0]
    if seeds is not None and len(seeds) != num_rows:
        raise ValueError(f"{len(seeds)} seeds for {num_rows} rows: give one seed a row")
    keys = torch.tensor(range(num_rows) if seeds is None else list(seeds), dtype=torch.int64, device=device)
    how = HowToFill(
        temperature=temperature,
        guidance_scale=guidance_scale,
        remasking=remasking,
        remasking_temperature=remasking_temperature,
        threshold=threshold,
        editing_threshold=editing_threshold,
        max_editing_rounds=max_editing_rounds,
        stop_at_eos=stop_at_eos,
    )
    filling = Filling(policy, layout, keys, how)
    _fill(filling, use_cache)
    filled = filling.ids
    if layout.feature_offsets is not None:
        filled = shift_ids(filling.ids, -layout.feature_offsets, policy.vocabulary.size)
    return SampleOutput(
        token_ids=filled,
        committed_step=filling.committed_step,
        committed_logprobs=filling.committed_logprobs,
        num_forward_rows=filling.num_forward_rows,
    )


def _fill(filling: Filling, use_cache: bool) -> None:
    """Run the engine that the policy's attention allows.

    Raises:
        ValueError: several spans for a policy that fills one, or editing for one that does not edit.
    """
    plans, abilities = filling.layout.plans, filling.policy.abilities
    if abilities.corruption == "uniform":
        EntropyBound(filling, cast("UniformPolicy", filling.policy)).fill()
        return
    if filling.how.editing_threshold is not None and not abilities.is_edited:
        raise ValueError("editing_threshold is for block-causal policies; leave it out")
    if abilities.attention == "block_causal":
        if len(plans) != 1:
            raise ValueError(f"the canvases have {len(plans)} open spans; a block-causal policy fills one span of text")
        BlockCausal(filling, cast("BlockCausalPolicy", filling.policy), plans[0], use_cache=use_cache).fill()
        return
    engine = Recompute(filling, use_cache=use_cache)
    for plan in plans:
        engine.fill(plan)
