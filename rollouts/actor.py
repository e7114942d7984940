"""A process that holds a frozen copy of the policy and turns work units into rollouts."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.types import PolicyVersion, Rollouts

if TYPE_CHECKING:
    from unigrpo.rollouts.units import WorkUnit


class RolloutActor:
    """Loads the base once (its file is memory-mapped, so the actors of a node share it) and swaps trainable weights.

    The class knows nothing of Ray: ``rollouts.pools.ray`` wraps it.
    """

    def __init__(self, policy: PolicySettings, lora: LoraSettings, seed: int, num_threads: int | None) -> None:
        """Load the base and its adapter, not yet with the learner's weights."""
        import torch

        from unigrpo.models.opening import open_policy

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._policy = open_policy(policy, lora, seed)
        self._version: PolicyVersion | None = None

    def process_id(self) -> int:
        """Return this process's id."""
        return os.getpid()

    def load(self, packed: np.ndarray, step: int) -> PolicyVersion:
        """Take the trainable weights (safetensors bytes, [B] uint8) and return the version of what arrived."""
        from safetensors.torch import load

        from unigrpo.models.adapter import set_trainable_state, state_version

        state = load(packed.tobytes())
        set_trainable_state(self._policy, state)
        self._version = state_version(state, step, "full" if self._policy.adapter is None else "adapter")
        return self._version

    def generate(self, unit: WorkUnit) -> Rollouts:
        """Return the unit's rollouts, marked with the version of the weights in use.

        Raises:
            RuntimeError: before weights were loaded.
        """
        from unigrpo.rollouts.units import generate

        if self._version is None:
            raise RuntimeError("this rollout actor has no weights yet; call load() before generate()")
        return generate(self._policy, replace(unit, keeps_features=False), self._version)
