"""From left to right (SDAR's released sampler)."""

from __future__ import annotations

import torch

from unigrpo.rollouts.orders.base import Candidates, highest


class Sequential:
    """The further to the left, the earlier, whatever was sampled."""

    reads = "positions"

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the first masked positions."""
        scores = candidates.scores
        columns = torch.arange(scores.shape[1], 0, -1, device=scores.device, dtype=scores.dtype)
        return highest(candidates, columns.expand_as(scores))
