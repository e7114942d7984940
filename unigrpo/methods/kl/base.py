"""What a KL estimator is: a penalty a token, from two log-probs of it.

Source: Schulman, "Approximating KL divergence" (2020). MMaDA (arXiv 2505.15809) does not name its estimator.
"""

from __future__ import annotations

from typing import Protocol

import torch


class KL(Protocol):
    """An estimate of KL(policy || other) at each scored token.

    With d = log p_other - log p, clamped once to +-20 nats before anything is made of it. An estimate grows with the
    distance, never points the wrong way and is bounded, so that no token's penalty outweighs a batch: beyond 3 nats it
    is straight, beyond 20 flat (`methods.log_ratio` has the bounds and why; use its `bounded_exp`, `bounded_square`).
    """

    def __call__(self, logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
        """Return [S], in nats.

        Args:
            logprobs: [S] nats, of the taken tokens under the policy, with gradient.
            other_logprobs: [S], of the same tokens on the same noisy input, under the reference or the old policy;
                takes no gradient.

        Raises:
            ValueError: if the shapes differ.
        """
