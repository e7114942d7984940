"""A random order, as masked diffusion is trained."""

from __future__ import annotations

import torch

from unigrpo.rollouts.orders.base import Candidates, highest


class Random:
    """The highest of uniform noise."""

    reads = "noise"

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the highest noise."""
        return highest(candidates, candidates.noise)
