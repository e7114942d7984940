"""The process that masked diffusion reverses (Dream's released sampler)."""

from __future__ import annotations

import torch

from unigrpo.rollouts.orders.base import Candidates


class Origin:
    """Each masked position by itself, with the probability that the schedule gives to a position.

    How many are committed is itself random.
    """

    reads = "coins"

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: one coin a position."""
        assert candidates.noise is not None
        return candidates.is_masked & (candidates.noise < candidates.share[:, None])
