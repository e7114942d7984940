"""LaViDa's shifted schedule (released sampler)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.rollouts.schedules.base import Progress, curve_counts, part_of_rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """s t / (1 + (s - 1) t) is masked at time t, read backwards."""

    is_for_pictures = False
    is_fixed = True
    is_cooling = True
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    """s: above 1 it starts slowly, below 1 fast."""

    def counts(self, num_masked: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Return [n, K] int64 of [n] masked positions when the block was started."""
        times = torch.linspace(0.0, 1.0, num_steps + 1)
        return curve_counts(num_masked, self.shift * times / (1.0 + (self.shift - 1.0) * times))

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: the step's own."""
        return self.counts(progress.num_at_start, progress.num_steps)[:, progress.step]

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: the step's part of what is to come."""
        return part_of_rest(self.counts(progress.num_at_start, progress.num_steps), progress.step)
