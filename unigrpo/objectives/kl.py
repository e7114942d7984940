"""Estimators of KL(policy || reference) from the log-probs of the taken tokens.

Source: Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

from typing import Literal

import torch

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp, so that one token cannot overflow a batch; beyond it the gradient is 0."""


def kl_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, kind: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """Return the KL estimate of each token, in nats.

    With d = log p_ref - log p: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - d - 1. k2 and k3 are never negative. MMaDA does not
    name its estimator. k3's d is clamped to +-20 inside exp.

    Args:
        logprobs: [S], with gradient.
        ref_logprobs: [S], of the same tokens on the same noisy input.
        kind: which.

    Raises:
        ValueError: if the shapes differ or the kind is unknown.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"log-probs of shape {tuple(logprobs.shape)} against {tuple(ref_logprobs.shape)}; score the same positions"
        )
    difference = ref_logprobs.detach() - logprobs
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() - difference - 1
    raise ValueError(f"kl is {kind!r}; give k1, k2 or k3")
