"""Estimators of KL(policy || reference) from the log-probs of the taken tokens.

Source: Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

from typing import Literal

import torch

MAX_LOG_RATIO = 20.0
"""Nats: two log-probs of one token count as at most this far apart, so that no token overflows a batch."""


def log_ratio(logprobs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return ``logprobs - other`` in nats, clamped to +-MAX_LOG_RATIO; beyond it both gradients are 0."""
    return (logprobs - other).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def is_beyond(logprobs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return bool: where ``log_ratio`` clamps, so that the token moves nothing."""
    return (logprobs - other).abs() > MAX_LOG_RATIO


def kl_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, kind: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """Return the KL estimate of each token, in nats.

    With d = log p_ref - log p: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - d - 1. k2 and k3 are never negative. MMaDA does not
    name its estimator. d is clamped once, before anything is made of it (``log_ratio``): beyond +-20 nats each
    estimator is flat, and never points the wrong way.

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
    difference = log_ratio(ref_logprobs.detach(), logprobs)
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return difference.exp() - difference - 1
    raise ValueError(f"kl is {kind!r}; give k1, k2 or k3")
