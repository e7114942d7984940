"""The z-score within the group."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ZScore:
    """(r - mean) / (std + eps) (MMaDA, arXiv 2505.15809, eq. 15).

    The standard deviation is the unbiased one, and eps is added to it, as the public GRPO trainers do. That eps is
    meant for rewards of scale 1: beside a standard deviation of 5e-5 it would shrink the advantages to a third. So at
    most the square of the standard deviation is added, which is less than eps below sqrt(eps). It is never more than
    sqrt(eps) of it, 1 %, and z-scores do not depend on the scale of the rewards.
    """

    eps: Annotated[float, Field(ge=0, le=1e6)] = 1e-4
    """What is added to the standard deviation, where it is above sqrt(eps)."""

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Return [G] from [G] (see `Advantage`)."""
        std = rewards.std(ddof=1)
        return (rewards - rewards.mean()) / (std + min(self.eps, std * std))
