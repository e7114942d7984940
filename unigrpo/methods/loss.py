"""The loss of a draw: ratio, objective and KL put together on flat vectors of scored tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import torch

from unigrpo.methods.log_ratio import check_vectors, is_beyond, is_bounded, log_ratio
from unigrpo.methods.objectives.base import LossInputs
from unigrpo.plugin import make

if TYPE_CHECKING:
    from unigrpo.methods.kl.base import KL
    from unigrpo.methods.objectives.base import Objective
    from unigrpo.methods.ratios.base import Ratio
    from unigrpo.settings.learning import KlChoice, ObjectiveChoice, RatioChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutputs:
    """Weighted sums over scored tokens, scalars; they add over micro-batches and over ranks."""

    loss: torch.Tensor
    """With gradient until it is detached."""
    weight: torch.Tensor
    """Sum of the weights: what `mean` divides by (1 less the fraction of rollouts with none scored)."""
    policy_loss: torch.Tensor
    """The negated gain."""
    kl: torch.Tensor
    """Nats a token, the penalty before its coefficient; 0 without one."""
    ratio: torch.Tensor
    cut: torch.Tensor
    """Weight of the tokens whose gradient the objective has cut off."""
    nll: torch.Tensor
    """Minus log-prob of the taken tokens: an estimate of the entropy, unbiased for tokens that the policy sampled."""
    clamped: torch.Tensor
    """Weight of the tokens whose log-ratio to the old policy or to the reference lies beyond +-20 nats."""
    num_bounded: torch.Tensor
    """How many tokens lie beyond +-3 nats of either, so that they count for less than the formulas say."""

    def __add__(self, other: LossOutputs) -> LossOutputs:
        """Return the sums over both, detached."""
        names = [field.name for field in fields(self)]
        return LossOutputs(**{name: (getattr(self, name) + getattr(other, name)).detach() for name in names})

    def mean(self, name: Literal["kl", "ratio", "cut", "nll", "clamped"]) -> float:
        """Return the weighted mean over tokens of one of the sums; 0 where no token was scored."""
        weight = float(self.weight)
        return float(getattr(self, name)) / weight if weight > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """sum_s weight_s [ -gain_s + kl_coef KL_s ] (MMaDA, arXiv 2505.15809, eq. 5, with the clipped objective).

    The weights carry the means over tokens and rollouts and are global, so that losses and gradients of micro-batches
    add up to those of the batch. Departures: ratio and penalty are bounded, straight beyond a log-ratio of 3 nats and
    without gradient beyond 20 (`methods.log_ratio`); a NaN log-prob gives a NaN loss, which the learner skips and
    counts.
    """

    ratio: Ratio
    objective: Objective
    kl: KL
    kl_coef: float
    """Weight of the penalty; 0 drops it, and the reference's passes with it."""
    kl_to: Literal["reference", "old"] = "reference"
    """Whose log-probs the penalty compares with."""

    @property
    def is_linear(self) -> bool:
        """Return whether the loss of a draw is the sum of its tokens', so that micro-batches can be streamed."""
        return self.ratio.is_linear and self.objective.is_linear

    @property
    def needs_reference(self) -> bool:
        """Return whether the log-probs of the reference are asked for."""
        return self.kl_coef > 0 and self.kl_to == "reference"

    def __call__(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        ref_logprobs: torch.Tensor | None,
        advantages: torch.Tensor,
        weight: torch.Tensor,
        rollout: torch.Tensor,
    ) -> LossOutputs:
        """Return the loss of a micro-batch and the sums behind it, in the widest dtype given.

        Args:
            logprobs: [S] nats, of the taken tokens under the policy, with gradient.
            old_logprobs: [S], under the policy that generated, on the same noisy input.
            ref_logprobs: [S], under the reference; None without a penalty to it.
            advantages: [S], of each token's rollout.
            weight: [S], of each token in the loss.
            rollout: [S] int64, the rollout of each token.

        Raises:
            ValueError: if a vector has another shape, naming it; or if the reference's is asked for and not there.
        """
        old_logprobs = old_logprobs.detach()
        check_vectors(logprobs=logprobs, old_logprobs=old_logprobs)
        other = self._compared_with(old_logprobs, ref_logprobs)
        ratio = self.ratio(log_ratio(logprobs, old_logprobs), rollout)
        inputs = LossInputs(logprobs=logprobs, ratio=ratio, advantages=advantages, weight=weight, rollout=rollout)
        gain, is_cut = self.objective(inputs)
        check_vectors(logprobs=logprobs, gain=gain, is_cut=is_cut)
        policy_loss = -(weight * gain).sum()
        kl_sum = torch.zeros_like(policy_loss)
        is_clamped = is_beyond(logprobs.detach(), old_logprobs)
        is_straight = is_bounded(logprobs.detach(), old_logprobs)
        if other is not None:
            kl = self.kl(logprobs, other)
            check_vectors(logprobs=logprobs, kl=kl)
            kl_sum = (weight * kl).sum()
            is_clamped |= is_beyond(logprobs.detach(), other)
            is_straight |= is_bounded(logprobs.detach(), other)
        loss = policy_loss + self.kl_coef * kl_sum
        with torch.no_grad():
            return LossOutputs(
                loss=loss,
                weight=weight.sum(),
                policy_loss=policy_loss.detach(),
                kl=kl_sum.detach(),
                ratio=(weight * ratio).sum(),
                cut=(weight * is_cut).sum(),
                nll=-(weight * logprobs).sum(),
                clamped=(weight * is_clamped).sum(),
                num_bounded=is_straight.sum(),
            )

    def _compared_with(self, old_logprobs: torch.Tensor, ref_logprobs: torch.Tensor | None) -> torch.Tensor | None:
        """Return the log-probs that the penalty compares with, [S]; None without one."""
        if self.kl_coef == 0:
            return None
        if self.kl_to == "old":
            return old_logprobs
        if ref_logprobs is None:
            raise ValueError("the KL is to the reference and there are no ref_logprobs; give them, or kl_coef 0")
        return ref_logprobs


def make_loss(ratio: RatioChoice, objective: ObjectiveChoice, kl: KlChoice) -> Loss:
    """Return the loss that a recipe chose.

    Raises:
        PluginError: if there is no such choice, or it refuses its parameters.
    """
    return Loss(ratio=make(ratio), objective=make(objective), kl=make(kl), kl_coef=kl.coef, kl_to=kl.to)
