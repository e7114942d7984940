"""The order of SDAR's and LLaDA2.0's released samplers with a fixed number of tokens a step."""

from __future__ import annotations

from unigrpo.rollouts.orders.base import Highest


class LowConfidenceStatic(Highest):
    """The surest tokens first, by their log-prob at temperature 1: ``low_confidence`` under its name there."""

    reads = "logprob"
