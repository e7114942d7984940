"""Half the squared log-ratio: biased, of small variance."""

from __future__ import annotations

import torch

from unigrpo.methods.log_ratio import bounded_square, log_ratio


class K2:
    """d^2 / 2, with d = log p_other - log p; never negative, and straight beyond 3 nats."""

    def __call__(self, logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
        """Return [S] nats from [S] and [S] (see `KL`)."""
        return bounded_square(log_ratio(other_logprobs.detach(), logprobs)) / 2
