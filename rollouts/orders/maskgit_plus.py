"""Dream's ``maskgit_plus`` (released sampler)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.rollouts.orders.base import Highest, likeliest


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskgitPlus(Highest):
    """The likeliest tokens first, at the temperature of sampling."""

    reads = "logits"
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] = 50

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: the token's probability among the likeliest; 0 beyond them."""
        tempered, best = likeliest(logits, temperature, self.top_k)
        chosen = tempered.gather(-1, sampled[:, None]).squeeze(-1)
        probability = (chosen - torch.logsumexp(best, dim=-1)).exp()
        return torch.where(chosen < best[:, -1], 0.0, probability)
