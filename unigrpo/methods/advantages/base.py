"""What an advantage is: how much better than its group a completion is."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Advantage(Protocol):
    """A rule for one group; `methods.groups` keeps what is missing, flat groups and weights away from it."""

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Return [G] advantages.

        Args:
            rewards: [G] float64 with G >= 2, all finite, that differ by more than rounding (`methods.groups`).
        """
