"""The z-score within the group."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ZScore:
    """(r - mean) / (std + eps) (MMaDA, arXiv 2505.15809, eq. 15).

    The standard deviation is the unbiased one, and eps is added to it, as the public GRPO trainers do.
    """

    eps: Annotated[float, Field(ge=0)] = 1e-4
    """What is added to the standard deviation."""

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Return [G] from [G] (see `Advantage`)."""
        return (rewards - rewards.mean()) / (rewards.std(ddof=1) + self.eps)
