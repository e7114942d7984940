"""The distance from the group's mean, as Dr. GRPO has it (arXiv 2503.20783)."""

from __future__ import annotations

import numpy as np


class Mean:
    """r - mean."""

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Return [G] from [G] (see `Advantage`)."""
        return rewards - rewards.mean()
