"""The order of SDAR's and LLaDA2.0's released samplers that commits more than the schedule's count."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.rollouts.orders.base import Candidates, highest


@dataclass(frozen=True, kw_only=True, slots=True)
class LowConfidenceDynamic:
    """All tokens above a probability, where they are at least the schedule's count, else the surest."""

    reads = "logprob"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The probability."""

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the positions above the threshold, or the highest scores."""
        is_above = candidates.is_masked & (candidates.scores > math.log(self.threshold))
        return torch.where((is_above.sum(1) >= candidates.share)[:, None], is_above, highest(candidates))
