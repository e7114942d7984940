"""The distance from the group's mean, as Dr. GRPO has it (arXiv 2503.20783)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """r - mean."""

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Return [G] from [G] (see `Advantage`)."""
        return rewards - rewards.mean()
