"""The engine for any attention: every denoising step sends the whole row through the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from unigrpo.rollouts.schedules.counts import (
    dream_count,
    expected_fraction,
    linear_counts,
    mass_counts,
    picture_count,
    remasking_temperatures,
)
from unigrpo.types import PICTURE_SCHEDULES, ModelInput

if TYPE_CHECKING:
    from unigrpo.models.base import Policy, PrefixPolicy
    from unigrpo.rollouts.filling import Filling
    from unigrpo.rollouts.layout import FillPlan
    from unigrpo.types import Remasking, Schedule


class Recompute:
    """Fills the spans of all rows in order, block by block, each block over its share of the denoising steps."""

    def __init__(self, filling: Filling, *, use_cache: bool = False) -> None:
        """Take the rows to fill; with the cache, prompts that see only themselves are computed once."""
        self.filling = filling
        self.layout = filling.layout
        self.prompt_lengths = filling.layout.prompt_lengths
        self.step = 0
        self.kept = self._keep_prompts(filling.policy) if use_cache else None

    def fill(self, plan: FillPlan) -> None:
        """Fill one span of every row, block by block."""
        filling = self.filling
        num_blocks = plan.positions.shape[1] // plan.block_length
        steps = plan.num_denoising_steps // num_blocks
        rows = torch.arange(len(filling.ids), device=filling.ids.device)
        for block in range(num_blocks):
            columns = plan.positions[:, block * plan.block_length : (block + 1) * plan.block_length]
            rows = self._fill_block(plan, columns, rows, steps)
            if len(rows) == 0:
                break
        self.step = plan.first_step + plan.num_denoising_steps
        if filling.how.stop_at_eos and plan.is_text:
            filling.fill_tail(plan)

    def _fill_block(self, plan: FillPlan, columns: torch.Tensor, rows: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Run the steps of one block on the given rows; return the rows that go on to the next block."""
        filling, first_step = self.filling, self.step
        temperatures = remasking_temperatures(filling.how.remasking_temperature, num_steps, plan.schedule)
        num_masked = (filling.ids.gather(1, columns) == filling.mask).sum(1)
        if plan.schedule in ("shift", "sine"):
            counts = mass_counts(num_masked, num_steps, plan.schedule, plan.schedule_shift)
        else:
            counts = linear_counts(num_masked, num_steps)
        for step in range(num_steps):
            self.step = first_step + step
            is_masked = filling.ids[rows].gather(1, columns[rows]) == filling.mask
            count, fraction = _share(plan.schedule, counts[rows], is_masked, step, filling.how.remasking)
            is_open = is_masked.any(dim=1)
            if bool((is_open & ((count if fraction is None else fraction) > 0)).any()):
                part = None if fraction is None else fraction[is_open]
                self._denoise(
                    plan, columns, rows[is_open], is_masked[is_open], count[is_open], part, temperatures[step]
                )
                rows = rows[~filling.is_finished(plan, rows)]
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
        count: torch.Tensor,
        fraction: torch.Tensor | None,
        remasking_temperature: float,
    ) -> None:
        """Draw at the masked positions ``is_masked`` [n, B] of the rows and commit ``count`` [n] of them."""
        filling = self.filling
        hidden, unconditional = self._hidden(rows, columns, is_masked)
        columns = columns[rows]
        token_noise = filling.uniforms(rows, columns, self.step, 0)
        draw = filling.draw(plan, hidden, unconditional, token_noise[is_masked])
        scores = torch.full(is_masked.shape, -torch.inf, dtype=torch.float64, device=filling.ids.device)
        scores[is_masked] = draw.confidence.double()
        is_committed = filling.select(
            scores,
            is_masked,
            count,
            filling.uniforms(rows, columns, self.step, 1),
            fraction=fraction,
            remasking_temperature=remasking_temperature,
        )
        filling.commit(rows, columns, is_committed, is_masked, draw, self.step)

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
        layout, ids, padding = self.layout, self.filling.ids[rows], self.layout.is_padding
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
        self.filling.num_forward_rows += len(ids)
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
            answers = cast("PrefixPolicy", self.filling.policy).hidden_after(model_input, self.kept, rows)
            return answers[row, column - lengths[row]], None
        hidden = self.filling.policy.hidden(model_input)
        if layout.twin_ids is None:
            return hidden[row, column], None
        return hidden[row, column], hidden[row + len(rows), column]


def _share(
    schedule: Schedule, counts: torch.Tensor, is_masked: torch.Tensor, step: int, remasking: Remasking
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return [n] how many of the masked positions [n, B] a step commits, and for ``origin`` which fraction of them."""
    num_masked, num_steps = is_masked.sum(dim=1), counts.shape[1]
    if remasking == "origin" and schedule in ("shift", "sine"):
        return num_masked, counts[:, step] / counts[:, step:].sum(dim=1).clamp(min=1)
    if remasking == "origin":
        return num_masked, expected_fraction(schedule, num_masked, is_masked.shape[1], step, num_steps)
    if schedule in PICTURE_SCHEDULES:
        return picture_count(num_masked, is_masked.shape[1], step, num_steps, schedule), None
    if schedule == "dream":
        return dream_count(num_masked, step, num_steps), None
    return counts[:, step], None
