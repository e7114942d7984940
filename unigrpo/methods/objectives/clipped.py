"""The clipped surrogate with a KL penalty, on flat vectors of scored tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch

from unigrpo.methods.objectives.kl import is_beyond, kl_penalty, log_ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class SurrogateStats:
    """Weighted sums over scored tokens, detached; they add over micro-batches, as the loss does."""

    weight: torch.Tensor
    """Sum of the weights: what the means below divide by (1 less the fraction of responses with none scored)."""
    policy_loss: torch.Tensor
    kl: torch.Tensor
    """Nats a token, the penalty before its coefficient; 0 without a reference."""
    ratio: torch.Tensor
    clipped: torch.Tensor
    """Weight of the tokens whose gradient the clip has cut off."""
    nll: torch.Tensor
    """Minus log-prob of the taken tokens: an estimate of the entropy, unbiased for tokens that the policy sampled."""
    clamped: torch.Tensor
    """Weight of the tokens whose log-ratio to the old policy or to the reference lies beyond +-20 nats."""

    def __add__(self, other: SurrogateStats) -> SurrogateStats:
        """Return the sums over both."""
        names = [field.name for field in fields(self)]
        return SurrogateStats(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def _mean(self, total: torch.Tensor) -> float:
        weight = float(self.weight)
        return float(total) / weight if weight > 0 else 0.0

    @property
    def ratio_mean(self) -> float:
        """Return the weighted mean of the ratio."""
        return self._mean(self.ratio)

    @property
    def clip_fraction(self) -> float:
        """Return the weighted fraction of clipped tokens."""
        return self._mean(self.clipped)

    @property
    def clamped_fraction(self) -> float:
        """Return the weighted fraction of tokens whose log-ratio was clamped."""
        return self._mean(self.clamped)

    @property
    def kl_mean(self) -> float:
        """Return the weighted mean of the KL estimate."""
        return self._mean(self.kl)

    @property
    def entropy(self) -> float:
        """Return the weighted mean of minus the log-prob."""
        return self._mean(self.nll)


def clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, clip_eps: float) -> torch.Tensor:
    """Return min(r A, clip(r, 1 - eps, 1 + eps) A) of each token: to be maximised.

    Args:
        ratio: [S], policy over old policy.
        advantages: [S], of each token's response.
        clip_eps: half-width of the trusted region.
    """
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)


def surrogate_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    weight: torch.Tensor,
    clip_eps: float,
    kl_coef: float,
    kl: Literal["k1", "k2", "k3"] = "k3",
) -> tuple[torch.Tensor, SurrogateStats]:
    """Return the loss of a micro-batch and its statistics.

    sum_s weight_s [ -min(r_s A_s, clip(r_s) A_s) + kl_coef KL_s ], r = exp(log p - log p_old) a token (MMaDA, arXiv
    2505.15809, eq. 5). The weights carry the means over tokens and responses and are global, so that losses and
    gradients of micro-batches add up to those of the batch. Departures: log-ratios to the old policy and to the
    reference are clamped to +-20 nats, and a token beyond has no gradient from that term; a NaN log-prob gives a NaN
    loss, which the caller skips and counts.

    Args:
        logprobs: [S] nats, of the taken tokens under the policy, with gradient.
        old_logprobs: [S], under the policy that generated, on the same noisy input.
        ref_logprobs: [S], under the reference; None drops the penalty.
        advantages: [S], of each token's response.
        weight: [S], of each token in the loss.
        clip_eps: half-width of the clip.
        kl_coef: weight of the penalty.
        kl: its estimator.

    Returns:
        The scalar loss in the widest dtype given, and the sums behind it.

    Raises:
        ValueError: if the vectors differ in shape.
    """
    for name, other in (("old_logprobs", old_logprobs), ("advantages", advantages), ("weight", weight)):
        if other.shape != logprobs.shape:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)}, logprobs {tuple(logprobs.shape)}; gather all at is_scored"
            )
    ratio = log_ratio(logprobs, old_logprobs.detach()).exp()
    policy_loss = -(weight * clipped_surrogate(ratio, advantages, clip_eps)).sum()
    kl_sum = torch.zeros_like(policy_loss)
    if ref_logprobs is not None:
        kl_sum = (weight * kl_penalty(logprobs, ref_logprobs, kl)).sum()
    with torch.no_grad():
        is_clamped = is_beyond(logprobs, old_logprobs)
        if ref_logprobs is not None:
            is_clamped |= is_beyond(logprobs, ref_logprobs)
        is_clipped = torch.where(advantages > 0, ratio > 1 + clip_eps, ratio < 1 - clip_eps) & (advantages != 0)
        stats = SurrogateStats(
            weight=weight.sum(),
            policy_loss=policy_loss.detach(),
            kl=kl_sum.detach(),
            ratio=(weight * ratio).sum(),
            clipped=(weight * is_clipped).sum(),
            nll=-(weight * logprobs).sum(),
            clamped=(weight * is_clamped).sum(),
        )
    return policy_loss + kl_coef * kl_sum, stats
