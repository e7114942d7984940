"""The clipped surrogate of PPO, GRPO and UniGRPO."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.methods.objectives.base import LossInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Clipped:
    """min(r A, clip(r, 1 - eps, 1 + eps) A) of each token (MMaDA, arXiv 2505.15809, eq. 5)."""

    clip_eps: Annotated[float, Field(gt=0, le=1e6)] = 0.2
    """eps, the half-width of the trusted region."""
    is_linear: ClassVar[bool] = True

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gain [S], and where the clip is what counts [S] (see `Objective`)."""
        ratio, advantages, low, high = inputs.ratio, inputs.advantages, 1 - self.clip_eps, 1 + self.clip_eps
        gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        return gain, torch.where(advantages > 0, ratio > high, ratio < low) & (advantages != 0)
