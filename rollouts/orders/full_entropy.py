"""LaViDa's entropy (released sampler)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unigrpo.rollouts.orders.base import Candidates, highest, negative_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class FullEntropy:
    """The lowest entropy over all ids first, at temperature 1."""

    reads = "logits"

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: the negated entropy, in nats."""
        return negative_entropy(logits)

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the highest scores."""
        return highest(candidates)
