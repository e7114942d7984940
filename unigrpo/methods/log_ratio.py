"""The difference of two log-probs of the same tokens, how far it counts, and the check of vectors over scored tokens.

Two bounds, in nats, keep one token from being the update of a whole batch:

- ``MAX_EXACT`` = 3: up to a token that is 20 times as likely under one policy as under the other, ratios and penalties
  are what their formulas say. Beyond, they go on along their tangent. An exponential would not: at 20 nats k3 is 4.9e8
  with a slope as large, and a token of negative advantage has a ratio of 4.9e8, either of which is more than all other
  tokens of a batch together; the norm of the gradient is then clipped, and they count for nothing.
- ``MAX_LOG_RATIO`` = 20: beyond, a token is flat, which is neither the right way nor the wrong one: so rare a token
  says more of arithmetic in half precision than of the policy.

So no ratio is above e^3 (1 + 17) = 362, and no slope of it above e^3 = 20.1. A penalty grows with the distance, is at
most 20 (k1), 55.5 (k2) or 341 (k3) nats a token, and its slope at most 1, 3 or 19.1. What was bounded is counted in the
metrics: ``num_bounded`` and ``clamped_fraction``.
"""

from __future__ import annotations

import math

import torch

MAX_LOG_RATIO = 20.0
"""Nats: two log-probs of one token count as at most this far apart, so that no token overflows a batch."""


MAX_EXACT = 3.0
"""Nats: beyond, what is made of a log-ratio goes on along its tangent."""


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


def is_bounded(logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
    """Return bool [S]: where a formula that bends has given way to its tangent, or to none."""
    return (logprobs - other_logprobs).abs() > MAX_EXACT


def bounded_exp(exponent: torch.Tensor) -> torch.Tensor:
    """Return exp [S] up to an exponent of ``MAX_EXACT``, and its tangent there beyond."""
    tangent = math.exp(MAX_EXACT) * (1 - MAX_EXACT + exponent)
    return torch.where(exponent > MAX_EXACT, tangent, exponent.clamp(max=MAX_EXACT).exp())


def bounded_square(value: torch.Tensor) -> torch.Tensor:
    """Return the square [S] up to a distance of ``MAX_EXACT`` from 0, and its tangent there beyond (Huber, doubled)."""
    tangent = MAX_EXACT * (2 * value.abs() - MAX_EXACT)
    return torch.where(value.abs() > MAX_EXACT, tangent, value.square())
