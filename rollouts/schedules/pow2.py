"""MaskGIT's square (arXiv 2202.04200), the other schedule of the released text-to-image samplers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unigrpo.rollouts.schedules.base import Progress, picture_count


@dataclass(frozen=True, kw_only=True, slots=True)
class Pow2:
    """1 - (k/K)² of the codes stay masked after step k of K."""

    is_for_pictures = True
    is_fixed = False
    is_cooling = True

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: what is masked beyond the curve; in float32, as in the reference: 7 of 16, not 8."""
        ratio = torch.tensor((progress.step + 1) / progress.num_steps, dtype=torch.float32)
        return picture_count(progress, 1.0 - ratio**2.0)

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: the count as a part of what is masked."""
        return self.count(progress) / progress.num_masked.clamp(min=1)
