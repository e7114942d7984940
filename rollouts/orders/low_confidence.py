"""The order of LLaDA (arXiv 2502.09992) and MMaDA."""

from __future__ import annotations

from unigrpo.rollouts.orders.base import Highest


class LowConfidence(Highest):
    """The surest tokens first, by their log-prob at temperature 1."""

    reads = "logprob"
