"""MaskGIT's cosine (arXiv 2202.04200): how MMaDA and Show-o draw pictures."""

from __future__ import annotations

import math

import torch

from unigrpo.rollouts.schedules.base import PictureSchedule


class Cosine(PictureSchedule):
    """cos(pi/2 k/K) of the codes stay masked after step k of K."""

    is_for_pictures = True
    is_fixed = False
    is_cooling = True

    def left(self, ratio: torch.Tensor) -> torch.Tensor:
        """Return [] float32 (see `PictureSchedule`)."""
        return torch.cos(ratio * math.pi * 0.5)
