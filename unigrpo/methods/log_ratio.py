"""The difference of two log-probs of the same tokens, and the check of every vector over scored tokens."""

from __future__ import annotations

import torch

MAX_LOG_RATIO = 20.0
"""Nats: two log-probs of one token count as at most this far apart, so that no token overflows a batch."""


def check_vectors(**vectors: torch.Tensor) -> None:
    """Refuse vectors over scored tokens that are not all of one shape [S].

    Raises:
        ValueError: naming the vector.
    """
    (first, reference), *_ = vectors.items()
    for name, vector in vectors.items():
        if vector.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; wanted [S], one value a scored token")
        if vector.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)}, {first} {tuple(reference.shape)}; gather all at is_scored"
            )


def log_ratio(logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
    """Return ``logprobs - other_logprobs`` [S] in nats, clamped to +-MAX_LOG_RATIO; beyond it both gradients are 0.

    Raises:
        ValueError: if the two are not of one shape [S].
    """
    check_vectors(logprobs=logprobs, other_logprobs=other_logprobs)
    return (logprobs - other_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def is_beyond(logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
    """Return bool [S]: where ``log_ratio`` clamps, so that the token moves nothing."""
    return (logprobs - other_logprobs).abs() > MAX_LOG_RATIO
