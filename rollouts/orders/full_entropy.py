"""LaViDa's entropy (released sampler)."""

from __future__ import annotations

import torch

from unigrpo.rollouts.orders.base import Highest, negative_entropy


class FullEntropy(Highest):
    """The lowest entropy over all ids first, at temperature 1."""

    reads = "logits"

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: the negated entropy, in nats."""
        return negative_entropy(logits)
