"""Generation by iterative unmasking: one ``sample()`` for text, picture questions, pictures and inpainting.

A canvas holds the mask token wherever something is to be generated. Its open spans are filled in order, each span block
by block, each block over its share of the denoising steps: one forward pass over the whole row, a token drawn at every
masked position of the block, and the most confident of them committed. Only those positions go through the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from unigrpo.image_features import shift_ids
from unigrpo.rollouts.draw import draw_tokens
from unigrpo.rollouts.layout import FillPlan, Layout, plan_of_ids, plans_of_canvases
from unigrpo.rollouts.schedules import cosine_count, linear_counts, remasking_temperatures
from unigrpo.seeding import uniform
from unigrpo.types import Canvas, ModelInput

if TYPE_CHECKING:
    from unigrpo.models.base import Policy

Remasking = Literal["low_confidence", "random"]
NUM_NOISE_STREAMS = 2  # the token draw's and the remasking's


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Noise:
    temperature: float
    guidance_scale: float
    remasking: Remasking
    remasking_temperature: float
    stop_at_eos: bool


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
    schedule: Literal["linear", "cosine"] = "linear",
    remasking_temperature: float = 0.0,
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
        remasking: "low_confidence" commits the most confident tokens, "random" random ones.
        is_padding: [N, L] bool, positions that nothing attends to.
        unconditional_ids: [N, L] int64 twin for guidance; its open positions are ignored.
        unconditional_is_padding: [N, L] bool; None takes the twin's picture-padding tokens where the policy has
            such a token, else ``is_padding``.
        vocabulary_range: half-open range of ids that may be drawn; None is the whole vocabulary.
        schedule: "linear" (text) or "cosine" (pictures).
        remasking_temperature: initial temperature of Gumbel noise on the log confidences ("cosine").
        stop_at_eos: stop a text span at its first EOS and fill the rest with EOS; tokens up to it are unchanged.
        seeds: [N] row seeds; None is 0..N-1.

    Raises:
        ValueError: for lengths that do not divide into blocks or steps, or settings given twice.
    """
    device = policy.device
    mask = policy.vocabulary.mask_token_id
    if isinstance(token_ids, torch.Tensor):
        if num_denoising_steps is None:
            raise ValueError("num_denoising_steps is missing: give the total number of denoising steps over all blocks")
        layout = plan_of_ids(
            token_ids.to(device), is_padding, unconditional_ids, unconditional_is_padding, policy.vocabulary,
            num_denoising_steps=num_denoising_steps, block_length=block_length, schedule=schedule,
            vocabulary_range=vocabulary_range, needs_twin=guidance_scale > 0,
        )  # fmt: skip
    else:
        if num_denoising_steps is not None or block_length is not None or vocabulary_range is not None:
            raise ValueError("a canvas holds its own steps, blocks and vocabulary range: leave those arguments out")
        layout = plans_of_canvases(token_ids, policy.vocabulary, device, needs_twin=guidance_scale > 0)
    num_rows = layout.token_ids.shape[0]
    if seeds is not None and len(seeds) != num_rows:
        raise ValueError(f"{len(seeds)} seeds for {num_rows} rows: give one seed a row")
    keys = torch.tensor(range(num_rows) if seeds is None else list(seeds), dtype=torch.int64, device=device)
    noise = _Noise(
        temperature=temperature, guidance_scale=guidance_scale, remasking=remasking,
        remasking_temperature=remasking_temperature, stop_at_eos=stop_at_eos,
    )  # fmt: skip
    run = _Run(policy, layout, keys, noise, mask)
    for plan in layout.plans:
        run.fill(plan)
    filled = run.ids
    if layout.feature_offsets is not None:
        filled = shift_ids(run.ids, -layout.feature_offsets, policy.vocabulary.size)
    return SampleOutput(
        token_ids=filled, committed_step=run.committed_step,
        committed_logprobs=run.committed_logprobs, num_forward_rows=run.num_forward_rows,
    )  # fmt: skip


class _Run:
    """The state of one call of ``sample``."""

    def __init__(self, policy: Policy, layout: Layout, keys: torch.Tensor, noise: _Noise, mask: int) -> None:
        self.policy, self.layout, self.keys, self.noise, self.mask = policy, layout, keys, noise, mask
        self.ids = layout.token_ids.clone()
        self.prompt_lengths = layout.prompt_lengths
        self.committed_step = torch.full_like(self.ids, -1, dtype=torch.int32)
        self.committed_logprobs = torch.zeros(self.ids.shape, dtype=torch.float32, device=self.ids.device)
        self.step = 0
        self.num_forward_rows = 0

    def fill(self, plan: FillPlan) -> None:
        """Fill one span of every row, block by block."""
        num_blocks = plan.positions.shape[1] // plan.block_length
        steps = plan.num_denoising_steps // num_blocks
        rows = torch.arange(len(self.ids), device=self.ids.device)
        for block in range(num_blocks):
            columns = plan.positions[:, block * plan.block_length : (block + 1) * plan.block_length]
            rows = self._fill_block(plan, columns, rows, steps)
            if len(rows) == 0:
                break
        self.step = plan.first_step + plan.num_denoising_steps
        if self.noise.stop_at_eos and plan.is_text:
            self._fill_tail(plan)

    def _fill_block(self, plan: FillPlan, columns: torch.Tensor, rows: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Run the steps of one block on the given rows; return the rows that go on to the next block."""
        first_step = self.step
        temperatures = remasking_temperatures(self.noise.remasking_temperature, num_steps)
        counts = linear_counts((self.ids.gather(1, columns) == self.mask).sum(1), num_steps)
        for step in range(num_steps):
            self.step = first_step + step
            is_masked = self.ids[rows].gather(1, columns[rows]) == self.mask
            if plan.schedule == "cosine":
                count = cosine_count(is_masked.sum(1), columns.shape[1], step, num_steps)
            else:
                count = counts[rows, step]
            if bool((count > 0).any()):
                self._denoise(plan, columns, rows, is_masked, count, temperatures[step])
                rows = self._unfinished(plan, rows)
            if len(rows) == 0:
                break
        self.step = first_step + num_steps
        return rows

    def _denoise(
        self, plan: FillPlan, columns: torch.Tensor, rows: torch.Tensor, is_masked: torch.Tensor, count: torch.Tensor,
        remasking_temperature: float,
    ) -> None:  # fmt: skip
        """Draw at the masked positions ``is_masked`` [n, B] of the rows and commit the ``count`` [n] surest."""
        hidden, unconditional = self._hidden(rows, columns, is_masked)
        position = self.layout.positions[rows].gather(1, columns[rows])
        token_noise = uniform(self.keys[rows], NUM_NOISE_STREAMS * self.step, position)
        draw = draw_tokens(
            self.policy, hidden, unconditional, vocabulary_range=plan.vocabulary_range,
            temperature=self.noise.temperature, guidance_scale=self.noise.guidance_scale,
            uniforms=token_noise[is_masked],
        )  # fmt: skip
        confidence = torch.full(is_masked.shape, -torch.inf, dtype=torch.float64, device=self.ids.device)
        confidence[is_masked] = draw.confidence.double()
        remasking_noise = uniform(self.keys[rows], NUM_NOISE_STREAMS * self.step + 1, position)
        if self.noise.remasking == "random":
            confidence = torch.where(is_masked, remasking_noise, confidence)
        elif remasking_temperature > 0:
            confidence = confidence - remasking_temperature * torch.log(-torch.log(remasking_noise))
        order = torch.argsort(confidence, dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        is_committed = is_masked & (rank < count[:, None])
        in_draw = is_committed[is_masked]
        row_of = rows[:, None].expand_as(is_committed)[is_committed]
        column_of = columns[rows][is_committed]
        self.ids[row_of, column_of] = draw.token_ids[in_draw]
        self.committed_step[row_of, column_of] = self.step
        self.committed_logprobs[row_of, column_of] = draw.logprobs[in_draw]

    def _hidden(
        self, rows: torch.Tensor, columns: torch.Tensor, is_masked: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the hidden states [S, D] at the masked positions, and those of the unconditional twin."""
        ids, padding = self.ids[rows], self.layout.is_padding
        padding = None if padding is None else padding[rows]
        if self.layout.twin_ids is not None:
            twin = torch.where(self.layout.is_open[rows], ids, self.layout.twin_ids[rows])
            twin_padding = self.layout.twin_is_padding
            ids = torch.cat([ids, twin])
            if padding is not None or twin_padding is not None:
                none = torch.zeros_like(twin, dtype=torch.bool)
                padding = torch.cat([
                    none if padding is None else padding, none if twin_padding is None else twin_padding[rows]
                ])  # fmt: skip
        self.num_forward_rows += len(ids)
        lengths = self.prompt_lengths[rows]
        hidden = self.policy.hidden(
            ModelInput(
                token_ids=ids, is_padding=padding, image_features=self.layout.image_features,
                prompt_lengths=lengths if self.layout.twin_ids is None else lengths.repeat(2),
            )
        )  # fmt: skip
        row, slot = is_masked.nonzero(as_tuple=True)
        column = columns[rows][row, slot]
        if self.layout.twin_ids is None:
            return hidden[row, column], None
        return hidden[row, column], hidden[row + len(rows), column]

    def _unfinished(self, plan: FillPlan, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows whose span still lacks a token at or before its first EOS."""
        if not (self.noise.stop_at_eos and plan.is_text):
            return rows
        span = self.ids[rows].gather(1, plan.positions[rows])
        is_stop = (span == self.mask) | (span == self.policy.vocabulary.eos_token_id)
        first = is_stop.to(torch.int8).argmax(dim=1, keepdim=True)
        is_done = is_stop.any(1) & (span.gather(1, first).squeeze(1) != self.mask)
        return rows[~is_done]

    def _fill_tail(self, plan: FillPlan) -> None:
        """Put EOS at every open position after the first EOS of a text span."""
        span = self.ids.gather(1, plan.positions)
        is_eos = span == self.policy.vocabulary.eos_token_id
        is_tail = (is_eos.cumsum(1) - is_eos.long()) > 0
        is_tail &= self.layout.is_open.gather(1, plan.positions)
        row, slot = is_tail.nonzero(as_tuple=True)
        column = plan.positions[row, slot]
        self.ids[row, column] = self.policy.vocabulary.eos_token_id
        never = self.committed_step[row, column] < 0
        self.committed_step[row[never], column[never]] = plan.first_step + plan.num_denoising_steps - 1
