"""Equal shares (LLaDA, arXiv 2502.09992, released sampler)."""

from __future__ import annotations

import torch

from unigrpo.rollouts.schedules.base import Progress


class Linear:
    """Every step commits the same number; the remainder is spread over the first steps."""

    is_for_pictures = False
    is_fixed = True
    is_cooling = True

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: the step's share."""
        share = progress.num_at_start // progress.num_steps
        return share + (progress.step < progress.num_at_start % progress.num_steps).long()

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: one part of the steps that are left."""
        fraction = torch.tensor(1.0 / (progress.num_steps - progress.step))
        return fraction.to(progress.num_masked.device).expand(progress.num_masked.shape)
