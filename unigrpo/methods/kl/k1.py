"""The plain log-ratio: unbiased, of either sign."""

from __future__ import annotations

import torch

from unigrpo.methods.log_ratio import log_ratio


class K1:
    """-d, with d = log p_other - log p."""

    def __call__(self, logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
        """Return [S] nats from [S] and [S] (see `KL`)."""
        return -log_ratio(other_logprobs.detach(), logprobs)
