"""Dream's ``topk_margin`` (released sampler)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.rollouts.orders.base import Highest, likeliest


@dataclass(frozen=True, kw_only=True, slots=True)
class TopkMargin(Highest):
    """The widest margin between the two likeliest tokens first, at the temperature of sampling."""

    reads = "logits"
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] = 50

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: how much likelier the likeliest token is than the next one."""
        probabilities = torch.softmax(likeliest(logits, temperature, self.top_k)[1], dim=-1)
        second = probabilities[:, 1] if probabilities.shape[-1] > 1 else 0.0
        return probabilities[:, 0] - second
