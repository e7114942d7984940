"""The engine for block-causal attention: rows go from block to block, and finished blocks are not computed again.

A position sees its own block and the blocks before it, so keys and values of a finished block are exact for good. Each
pass sends of a row what is not kept yet: at first the prompt and the first open block, within a block that block, and
once a block is finished that block with the next one. Rows do not wait for each other; equal prompts are computed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from unigrpo.errors import UserError
from unigrpo.rollouts.orders.base import Candidates
from unigrpo.rollouts.schedules.base import Progress
from unigrpo.types import ModelInput

if TYPE_CHECKING:
    from unigrpo.models.base import BlockCausalPolicy, KeyValueStore
    from unigrpo.rollouts.layout import FillPlan
    from unigrpo.rollouts.state import SamplerState


class BlockCausal:
    """Fills one text span of every row, on a grid of blocks that starts at the row's first token.

    Where the span starts or ends inside a block, that block is filled with the given tokens in it. Its count of tokens
    a step is that of a whole block, as in the released samplers of SDAR and LLaDA2.0.
    """

    def __init__(self, state: SamplerState, policy: BlockCausalPolicy, plan: FillPlan, *, use_cache: bool) -> None:
        """Take the rows to fill; without the cache each pass computes a row from its first token on.

        Raises:
            UserError: more denoising steps a block than it has positions, or what only full attention has.
        """
        layout = state.layout
        self.state, self.policy, self.plan, self.use_cache = state, policy, plan, use_cache
        self.size = plan.block_length
        self.num_steps = plan.num_denoising_steps // -(-plan.positions.shape[1] // self.size)
        self._check()
        num_rows, length = state.ids.shape
        is_padding = torch.zeros_like(state.ids, dtype=torch.bool) if layout.is_padding is None else layout.is_padding
        self.length = length - is_padding.sum(dim=1)
        self.capacity = -(-length // self.size) * self.size
        beyond = (0, self.capacity - length)
        self.column_of = functional.pad(torch.argsort(is_padding.to(torch.int8), dim=1, stable=True), beyond)
        """[N, capacity]: the column of each of the row's positions, those of padding last."""
        self.is_blank = functional.pad(layout.is_open.gather(1, self.column_of[:, :length]), beyond)
        """[N, capacity]: positions that were masks at the start."""
        self.has_blank = self.is_blank.view(num_rows, -1, self.size).any(dim=2)
        self.counts = self._counts(state.ids.device)
        self.first_block = layout.positions.gather(1, plan.positions[:, :1]).squeeze(1) // self.size
        self.block = self.first_block.clone()
        self.step = torch.zeros_like(self.block)
        """[N]: steps that the row has made in its block."""
        self.num_rounds = torch.zeros_like(self.block)
        """[N]: editing rounds that it has made there, passes without a mask."""
        self.num_kept = torch.zeros_like(self.block)
        """[N]: positions whose keys and values are kept: whole finished blocks."""

    def _check(self) -> None:
        if self.num_steps > self.size:
            raise UserError(
                f"{self.num_steps} denoising steps for a block of {self.size} positions: each commits at least one "
                f"token, so give at most {self.size} a block"
            )
        if self.state.layout.twin_ids is not None:
            raise UserError("a block-causal policy is sampled without guidance: set guidance_scale to 0")
        if not self.plan.schedule.is_fixed or self.state.sampling.remasking_temperature > 0:
            raise UserError(
                "a block-causal policy is sampled with a schedule whose counts are fixed when a block starts, such as "
                f"linear, not {type(self.plan.schedule).__name__}, without remasking noise (remasking_temperature "
                f"{self.state.sampling.remasking_temperature})"
            )
        if self.state.order.reads == "coins":
            raise UserError(
                f"remasking {self.state.sampling.remasking.use!r} is for full attention; a block-causal policy commits "
                "by another order"
            )

    def _counts(self, device: torch.device) -> torch.Tensor:
        """Return [K] int64: what each step of a whole block commits."""
        size = torch.full((1,), self.size, device=device)
        progresses = [
            Progress(num_at_start=size, num_masked=size, num_positions=self.size, step=step, num_steps=self.num_steps)
            for step in range(self.num_steps)
        ]
        return torch.cat([self.plan.schedule.count(progress) for progress in progresses])

    def fill(self) -> None:
        """Fill the span of every row."""
        rows = torch.arange(len(self.state.ids), device=self.state.ids.device)
        rows = rows[self._enter(rows, self.first_block)]
        cache = self.policy.new_cache(self.capacity) if self.use_cache else None
        while len(rows):
            start = self.block[rows] * self.size
            stop = torch.minimum(start + self.size, self.length[rows])
            hidden = self._block_hidden(rows, start, stop, cache)
            self.num_kept[rows] = start
            is_done = self._denoise(rows, start, stop, hidden)
            is_going = torch.ones_like(is_done)
            is_going[is_done] = self._enter(rows[is_done], self.block[rows[is_done]] + 1)
            if self.state.sampling.editing_threshold is None:
                is_going &= ~self.state.is_finished(self.plan, rows)
            else:  # a token may change until its block is done
                is_going &= ~(self.state.is_finished(self.plan, rows) & is_done)
            if not bool(is_going.all()):
                rows = rows[is_going]
                if cache is not None:
                    cache.select(is_going.nonzero()[:, 0])
        if self.state.sampling.stop_at_eos and self.plan.is_text:
            self.state.fill_tail(self.plan)

    def _enter(self, rows: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Send each row to its first block from ``block`` [n] on that has something to fill; return which have one."""
        numbers = torch.arange(self.has_blank.shape[1], device=block.device)
        is_ahead = self.has_blank[rows] & (numbers >= block[:, None])
        self.block[rows] = is_ahead.to(torch.int8).argmax(dim=1)
        self.step[rows] = 0
        self.num_rounds[rows] = 0
        return is_ahead.any(dim=1)

    def _block_hidden(
        self, rows: torch.Tensor, start: torch.Tensor, stop: torch.Tensor, cache: KeyValueStore | None
    ) -> torch.Tensor:
        """Return [n, B, D]: the hidden states of each row's block, after whatever was not kept before it."""
        first = torch.zeros_like(start) if cache is None else self.num_kept[rows]
        is_long = stop - first > self.size
        if cache is None or cache.is_empty or bool(is_long.all()) or not bool(is_long.any()):
            return self._forward(rows, first, start, stop, cache, None)
        parts = [part.nonzero()[:, 0] for part in (is_long, ~is_long)]
        pieces = [self._forward(rows[p], first[p], start[p], stop[p], cache, p) for p in parts]
        return torch.cat(pieces)[torch.cat(parts).argsort()]

    def _forward(
        self,
        rows: torch.Tensor,
        first: torch.Tensor,
        start: torch.Tensor,
        stop: torch.Tensor,
        cache: KeyValueStore | None,
        cache_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """Send positions ``first`` .. ``stop`` of the rows through the model; return [n, B, D] from ``start`` on."""
        width = int((stop - first).max())
        positions = first[:, None] + torch.arange(width, device=first.device)
        is_padding = positions >= stop[:, None]
        ids = self._ids(rows, positions).masked_fill(is_padding, self.state.policy.vocabulary.pad_token_id)
        back = None
        if cache is not None and cache.is_empty:  # samples of one prompt are still equal
            back, sole = _unique_rows(torch.cat([stop[:, None], ids], dim=1))
            ids, positions, is_padding = ids[sole], positions[sole], is_padding[sole]
        model_input = ModelInput(
            token_ids=ids,
            positions=positions,
            block_length=self.size,
            is_padding=is_padding if bool(is_padding.any()) else None,
        )
        self.state.num_forward_rows += len(ids)
        if cache is None:
            hidden = self.policy.hidden(model_input)
        else:
            hidden = self.policy.hidden_cached(model_input, cache, cache_rows)
            if back is not None:
                cache.select(back)
                hidden = hidden[back]
        slots = (start - first)[:, None] + torch.arange(self.size, device=first.device)
        return hidden.gather(1, slots.clamp(max=width - 1)[..., None].expand(-1, -1, hidden.shape[-1]))

    def _columns(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.column_of[rows].gather(1, positions.clamp(max=self.capacity - 1))

    def _ids(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.state.ids[rows].gather(1, self._columns(rows, positions))

    def _denoise(
        self, rows: torch.Tensor, start: torch.Tensor, stop: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Sample and commit in each row's block; return [n] bool: whether the block is done."""
        state, editing_threshold = self.state, self.state.sampling.editing_threshold
        positions = start[:, None] + torch.arange(self.size, device=start.device)
        columns, tokens = self._columns(rows, positions), self._ids(rows, positions)
        is_open = self.is_blank[rows].gather(1, positions) & (positions < stop[:, None])
        is_masked = is_open & (tokens == state.mask)
        is_sampled = is_masked if editing_threshold is None else is_open
        step = self._step_number(rows)
        noise = state.uniforms(rows, columns, step, 0)
        sampled = state.sample(self.plan, hidden[is_sampled], None, noise[is_sampled], is_mask_banned=True)
        confidence = torch.full(is_sampled.shape, -torch.inf, dtype=torch.float64, device=columns.device)
        confidence[is_sampled] = sampled.confidence.double()
        count = self.counts[self.step[rows].clamp(max=self.num_steps - 1)]
        candidates = Candidates(scores=confidence, is_masked=is_masked, share=count)
        is_committed = state.select(rows, columns, step, candidates)
        is_done = ~(is_masked & ~is_committed).any(dim=1)
        if editing_threshold is not None:
            new_tokens = tokens.masked_scatter(is_sampled, sampled.token_ids)
            is_sure = torch.zeros_like(is_sampled).masked_scatter(
                is_sampled, sampled.logprobs.exp() > editing_threshold
            )
            is_edited = is_open & ~is_masked & (new_tokens != tokens) & is_sure
            is_committed = is_committed | is_edited
            is_round = ~is_masked.any(dim=1)
            self.num_rounds[rows] += is_round.long()
            is_spent = self.num_rounds[rows] >= state.max_editing_rounds
            is_done &= is_spent | (is_round & ~is_edited.any(dim=1))
        state.commit(rows, columns, is_committed, is_sampled, sampled, step)
        self.step[rows] += 1
        return is_done

    def _step_number(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [n]: the denoising step, counted over all blocks of the row as if each took as many as it can."""
        editing = 0 if self.state.sampling.editing_threshold is None else self.state.max_editing_rounds
        in_span = (self.block[rows] - self.first_block[rows]) * (self.num_steps + editing)
        return self.plan.first_step + in_span + self.step[rows]


def _unique_rows(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [n] which of the U different rows of [n, K] each is, and [U] a row of each kind."""
    unique, back = torch.unique(keys, dim=0, return_inverse=True)
    number = torch.arange(len(keys), device=keys.device)
    sole = torch.full((len(unique),), len(keys), device=keys.device).scatter_reduce(0, back, number, "amin")
    return back, sole
