"""The order of LLaDA (arXiv 2502.09992) and MMaDA."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unigrpo.rollouts.orders.base import Candidates, highest


@dataclass(frozen=True, kw_only=True, slots=True)
class LowConfidence:
    """The surest tokens first, by their log-prob at temperature 1."""

    reads = "logprob"

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the highest scores."""
        return highest(candidates)
