"""A ratio a token, as GRPO and UniGRPO have it."""

from __future__ import annotations

from typing import ClassVar

import torch

from unigrpo.methods.log_ratio import bounded_exp


class Token:
    """r_s = exp(log p_s - log p_old,s) (MMaDA, arXiv 2505.15809, eq. 4); a ratio above 20 goes on along its tangent."""

    is_linear: ClassVar[bool] = True

    def __call__(self, log_ratio: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
        """Return [S] from the log-ratio [S] and the rollout of each token [S] (see `Ratio`)."""
        return bounded_exp(log_ratio)
