"""Rollouts from this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from unigrpo.rollouts.units import WorkUnit, generate, joined
from unigrpo.types import PolicyVersion, Rollouts

if TYPE_CHECKING:
    import torch

    from unigrpo.models.base import Policy


class LocalPool:
    """Generates in this process with the learner's own policy: nothing is delivered, the version is only recorded."""

    shares_policy: ClassVar[bool] = True

    def __init__(self, policy: Policy) -> None:
        """Share the learner's policy."""
        self._policy = policy
        self._version: PolicyVersion | None = None

    def load(self, state: dict[str, torch.Tensor], version: PolicyVersion) -> None:
        """Record the version: the policy is the learner's own, so its weights are here already."""
        self._version = version

    def generate(self, units: Sequence[WorkUnit]) -> Rollouts:
        """Return the rollouts of all units, in order."""
        if self._version is None:
            raise RuntimeError("the pool has no weights yet; call load() before generate()")
        return joined([generate(self._policy, unit, self._version) for unit in units])

    def close(self) -> None:
        """Do nothing: the policy belongs to the learner."""
