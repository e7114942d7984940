"""The distance from the mean of the others, as RLOO has it (arXiv 2402.14740)."""

from __future__ import annotations

import numpy as np


class LeaveOneOut:
    """r - mean of the other G - 1, which is (r - mean) G / (G - 1)."""

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Return [G] from [G] (see `Advantage`)."""
        return (rewards - rewards.mean()) * (len(rewards) / (len(rewards) - 1))
