"""Dream's timesteps (Dream 7B, arXiv 2508.15487, released sampler)."""

from __future__ import annotations

import torch

from unigrpo.rollouts.schedules.base import Progress

END = 1e-3


class Dream:
    """The times fall evenly from 1 to 0.001; a step from t to s commits 1 - s/t of what is masked, the last one all.

    In float32, as there: counts are rounded down from it.
    """

    is_for_pictures = False
    is_fixed = False
    is_cooling = False

    def fraction(self, step: int, num_steps: int) -> torch.Tensor:
        """Return [] float32: which part of the masked positions a step, from 0, commits."""
        if step == num_steps - 1:
            return torch.ones(())
        times = torch.linspace(1.0, END, num_steps + 1)
        return 1.0 - times[step + 1] / times[step]

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: the step's part of what is masked now."""
        return (progress.num_masked.float() * self.expected_fraction(progress)).long()

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: the step's part."""
        fraction = self.fraction(progress.step, progress.num_steps)
        return fraction.to(progress.num_masked.device).expand(progress.num_masked.shape)
