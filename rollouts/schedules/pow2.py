"""MaskGIT's square (arXiv 2202.04200), the other schedule of the released text-to-image samplers."""

from __future__ import annotations

import torch

from unigrpo.rollouts.schedules.base import PictureSchedule


class Pow2(PictureSchedule):
    """1 - (k/K)² of the codes stay masked after step k of K."""

    is_for_pictures = True
    is_fixed = False
    is_cooling = True

    def left(self, ratio: torch.Tensor) -> torch.Tensor:
        """Return [] float32 (see `PictureSchedule`)."""
        return 1.0 - ratio**2.0
