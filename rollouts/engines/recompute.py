"""The engine for any attention: every denoising step sends the whole row through the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from unigrpo.rollouts.orders.base import Candidates
from unigrpo.rollouts.schedules.base import Progress, noise_temperature
from unigrpo.types import ModelInput

if TYPE_CHECKING:
    from unigrpo.models.base import Policy, PrefixPolicy
    from unigrpo.rollouts.layout import FillPlan
    from unigrpo.rollouts.state import SamplerState


class Recompute:
    """Fills the spans of all rows in order, block by block, each block over its share of the denoising steps."""

    def __init__(self, state: SamplerState, *, use_cache: bool = False) -> None:
        """Take the rows to fill; with the cache, prompts that see only themselves are computed once."""
        self.state = state
        self.layout = state.layout
        self.prompt_lengths = state.layout.prompt_lengths
        self.step = 0
        self.kept = self._keep_prompts(state.policy) if use_cache else None

    def fill(self, plan: FillPlan) -> None:
        """Fill one span of every row, block by block."""
        state = self.state
        num_blocks = plan.positions.shape[1] // plan.block_length
        steps = plan.num_denoising_steps // num_blocks
        rows = torch.arange(len(state.ids), device=state.ids.device)
        for block in range(num_blocks):
            columns = plan.positions[:, block * plan.block_length : (block + 1) * plan.block_length]
            rows = self._fill_block(plan, columns, rows, steps)
            if len(rows) == 0:
                break
        self.step = plan.first_step + plan.num_denoising_steps
        if state.sampling.stop_at_eos and plan.is_text:
            state.fill_tail(plan)

    def _fill_block(self, plan: FillPlan, columns: torch.Tensor, rows: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Run the steps of one block on the given rows; return the rows that go on to the next block."""
        state, first_step = self.state, self.step
        num_at_start = (state.ids.gather(1, columns) == state.mask).sum(1)
        for step in range(num_steps):
            self.step = first_step + step
            is_masked = state.ids[rows].gather(1, columns[rows]) == state.mask
            progress = Progress(
                num_at_start=num_at_start[rows],
                num_masked=is_masked.sum(dim=1),
                num_positions=columns.shape[1],
                step=step,
                num_steps=num_steps,
            )
            is_by_chance = state.order.reads == "coins"
            share = plan.schedule.expected_fraction(progress) if is_by_chance else plan.schedule.count(progress)
            is_open = is_masked.any(dim=1)
            if bool((is_open & (share > 0)).any()):
                temperature = noise_temperature(plan.schedule, state.sampling.remasking_temperature, step, num_steps)
                self._denoise(plan, columns, rows[is_open], is_masked[is_open], share[is_open], temperature)
                rows = rows[~state.is_finished(plan, rows)]
            if len(rows) == 0:
                break
        self.step = first_step + num_steps
        return rows

    def _denoise(
        self,
        plan: FillPlan,
        columns: torch.Tensor,
        rows: torch.Tensor,
        is_masked: torch.Tensor,
        share: torch.Tensor,
        temperature: float,
    ) -> None:
        """Sample at the masked positions ``is_masked`` [n, B] of the rows and commit some of them.

        Args:
            plan: of the span.
            columns: [N, B] of the block.
            rows: [n].
            is_masked: [n, B] bool.
            share: [n], how many to commit; for an order of coins the probability of each.
            temperature: of the remasking noise.
        """
        state = self.state
        hidden, unconditional = self._hidden(rows, columns, is_masked)
        columns = columns[rows]
        sampled = state.sample(plan, hidden, unconditional, state.uniforms(rows, columns, self.step, 0)[is_masked])
        scores = torch.full(is_masked.shape, -torch.inf, dtype=torch.float64, device=state.ids.device)
        scores[is_masked] = sampled.confidence.double()
        candidates = Candidates(scores=scores, is_masked=is_masked, share=share)
        is_committed = state.select(rows, columns, self.step, candidates, temperature)
        state.commit(rows, columns, is_committed, is_masked, sampled, self.step)

    def _keep_prompts(self, policy: Policy) -> Any | None:
        """Return what the policy keeps of the prompts; None where it keeps nothing, or rows are padded in front."""
        layout = self.layout
        is_padded_in_front = layout.is_padding is not None and bool(layout.is_padding[:, 0].any())
        if policy.abilities.attention != "prefix" or layout.twin_ids is not None or is_padded_in_front:
            return None
        return cast("PrefixPolicy", policy).keep_prompts(
            ModelInput(
                token_ids=layout.token_ids,
                is_padding=layout.is_padding,
                image_features=layout.image_features,
                prompt_lengths=self.prompt_lengths,
            )
        )

    def _hidden(
        self, rows: torch.Tensor, columns: torch.Tensor, is_masked: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the hidden states [S, D] at the masked positions, and those of the unconditional twin."""
        layout, ids, padding = self.layout, self.state.ids[rows], self.layout.is_padding
        padding = None if padding is None else padding[rows]
        if layout.twin_ids is not None:
            twin = torch.where(layout.is_open[rows], ids, layout.twin_ids[rows])
            twin_padding = layout.twin_is_padding
            ids = torch.cat([ids, twin])
            if padding is not None or twin_padding is not None:
                none = torch.zeros_like(twin, dtype=torch.bool)
                padding = torch.cat(
                    [none if padding is None else padding, none if twin_padding is None else twin_padding[rows]]
                )
        self.state.num_forward_rows += len(ids)
        lengths = self.prompt_lengths[rows]
        model_input = ModelInput(
            token_ids=ids,
            is_padding=padding,
            image_features=layout.image_features,
            prompt_lengths=lengths if layout.twin_ids is None else lengths.repeat(2),
        )
        row, slot = is_masked.nonzero(as_tuple=True)
        column = columns[rows][row, slot]
        if self.kept is not None:
            answers = cast("PrefixPolicy", self.state.policy).hidden_after(model_input, self.kept, rows)
            return answers[row, column - lengths[row]], None
        hidden = self.state.policy.hidden(model_input)
        if layout.twin_ids is None:
            return hidden[row, column], None
        return hidden[row, column], hidden[row + len(rows), column]
