"""The log-ratio with its control variate: unbiased, never negative, but for rounding."""

from __future__ import annotations

import torch

from unigrpo.methods.log_ratio import bounded_exp, log_ratio


class K3:
    """exp(d) - d - 1, with d = log p_other - log p; never negative, but for rounding, and straight beyond 3 nats."""

    def __call__(self, logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
        """Return [S] nats from [S] and [S] (see `KL`)."""
        difference = log_ratio(other_logprobs.detach(), logprobs)
        return bounded_exp(difference) - difference - 1
