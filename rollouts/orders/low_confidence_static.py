"""The order of SDAR's and LLaDA2.0's released samplers with a fixed number of tokens a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unigrpo.rollouts.orders.base import Candidates, highest


@dataclass(frozen=True, kw_only=True, slots=True)
class LowConfidenceStatic:
    """The surest tokens first, by their log-prob at temperature 1: ``low_confidence`` under its name there."""

    reads = "logprob"

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the highest scores."""
        return highest(candidates)
