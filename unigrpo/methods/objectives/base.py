"""What an objective is: the gain of each scored token, to be maximized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from unigrpo.methods.log_ratio import check_vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """Flat vectors over the S scored tokens of a micro-batch, all [S].

    Raises:
        ValueError: if one has another shape, naming it.
    """

    logprobs: torch.Tensor
    """Nats, of the taken tokens under the policy, with gradient."""
    ratio: torch.Tensor
    """The policy over the old policy, as the chosen `Ratio` makes it, with gradient."""
    advantages: torch.Tensor
    """The advantage of each token's rollout."""
    weight: torch.Tensor
    """Weight of each token in the loss; carries the means over tokens and rollouts and is global."""
    rollout: torch.Tensor
    """int64, the rollout of each token."""

    def __post_init__(self) -> None:
        """Check every vector."""
        check_vectors(**{name: getattr(self, name) for name in LossInputs.__slots__})


class Objective(Protocol):
    """What a token's ratio and advantage are worth."""

    is_linear: ClassVar[bool]
    """Whether the gain of a token is a function of that token alone, so that micro-batches add up. Where it is not, the
    learner takes a pass without gradient over the whole draw first."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gain [S], to be maximized, and bool [S]: the tokens whose gradient it has cut off."""
