"""Dream's ``entropy`` (released sampler)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.rollouts.orders.base import Highest, likeliest, negative_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class Entropy(Highest):
    """The lowest entropy of the likeliest tokens first, at the temperature of sampling."""

    reads = "logits"
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] = 50

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: the negated entropy, in nats."""
        return negative_entropy(likeliest(logits, temperature, self.top_k)[1])
