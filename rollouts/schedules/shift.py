"""LaViDa's shifted schedule (released sampler)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.rollouts.schedules.base import CurveSchedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift(CurveSchedule):
    """s t / (1 + (s - 1) t) is masked at time t, read backwards."""

    is_for_pictures = False
    is_fixed = True
    is_cooling = True
    shift: Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)] = 3.0
    """s: above 1 it starts slowly, below 1 fast."""

    def curve(self, times: torch.Tensor) -> torch.Tensor:
        """Return [K + 1] float32 (see `CurveSchedule`)."""
        return self.shift * times / (1.0 + (self.shift - 1.0) * times)
