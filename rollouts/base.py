"""The contract of whatever turns work units into rollouts: this process, or Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from unigrpo.errors import UserError

if TYPE_CHECKING:
    import torch

    from unigrpo.rollouts.units import WorkUnit
    from unigrpo.types import PolicyVersion, Rollouts


class PolicyVersionMismatchError(RuntimeError):
    """An actor generated with other weights than it was told to: the run must not train on its rollouts."""


class RolloutActorsLostError(UserError):
    """Actors died more often than the recipe allows."""


class RolloutDeadlineError(UserError):
    """Nothing finished for as long as the recipe allows."""


class RolloutPool(Protocol):
    """Generates work units with the policy that was last loaded."""

    shares_policy: ClassVar[bool]
    """Whether it samples with the learner's own policy, so that `load` needs the version alone."""

    def load(self, state: dict[str, torch.Tensor], version: PolicyVersion) -> None:
        """Deliver trainable weights to every actor; returns when each has echoed the version."""

    def generate(self, units: Sequence[WorkUnit]) -> Rollouts:
        """Return the rollouts of all units, in the order of the units."""

    def close(self) -> None:
        """Stop the actors."""
