"""LaViDa's sine schedule (released sampler)."""

from __future__ import annotations

import math

import torch

from unigrpo.rollouts.schedules.base import CurveSchedule


class Sine(CurveSchedule):
    """sin(pi t / 2) squared is masked at time t, read backwards: slow at both ends."""

    is_for_pictures = False
    is_fixed = True
    is_cooling = True

    def curve(self, times: torch.Tensor) -> torch.Tensor:
        """Return [K + 1] float32 (see `CurveSchedule`)."""
        return (1.0 - torch.cos(math.pi * times)) / 2.0
