"""The order of SDAR's and LLaDA2.0's released samplers that commits more than the schedule's count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from unigrpo.rollouts.orders.base import Candidates, highest


@dataclass(frozen=True, kw_only=True, slots=True)
class LowConfidenceDynamic:
    """All tokens above a probability, where they are at least the schedule's count, else the surest."""

    reads = "logprob"
    threshold: float = 0.9
    """The probability."""

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; wanted a probability above 0, at most 1")

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the positions above the threshold, or the highest scores."""
        is_above = candidates.is_masked & (candidates.scores > math.log(self.threshold))
        return torch.where((is_above.sum(1) >= candidates.share)[:, None], is_above, highest(candidates))
