"""A ratio a token, as GRPO and UniGRPO have it."""

from __future__ import annotations

from typing import ClassVar

import torch


class Token:
    """r_s = exp(log p_s - log p_old,s) (MMaDA, arXiv 2505.15809, eq. 4)."""

    is_linear: ClassVar[bool] = True

    def __call__(self, log_ratio: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
        """Return [S] from the log-ratio [S] and the rollout of each token [S] (see `Ratio`)."""
        return log_ratio.exp()
