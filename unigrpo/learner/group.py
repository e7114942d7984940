"""The handle through which the loop reaches its learner ranks; today one rank, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unigrpo.learner.learner import Learner, UpdateStats
from unigrpo.models.adapter import set_trainable_state, state_version, trainable_state
from unigrpo.types import Batch, MaskDraw, PolicyVersion

if TYPE_CHECKING:
    from unigrpo.models.base import Policy


class LearnerGroup:
    """What the loop asks of its learner, whatever the number of ranks."""

    def __init__(self, policy: Policy, learner: Learner) -> None:
        """Wrap the one rank of this process."""
        self._policy, self._learner = policy, learner

    def weights(self, step: int) -> tuple[dict[str, torch.Tensor], PolicyVersion]:
        """Return the trainable weights to deliver, and their version."""
        state = trainable_state(self._policy)
        return state, state_version(state, step, "full" if self._policy.adapter is None else "adapter")

    def draw(self, batch: Batch, step: int) -> list[MaskDraw]:
        """Return the noise of every inner update of a step."""
        return self._learner.draw(batch, step)

    def old_logprobs(self, batch: Batch, draws: list[MaskDraw]) -> list[torch.Tensor | None]:
        """Return [S] of each draw under the policy before the step's first update (None: that update's own)."""
        return self._learner.old_logprobs(batch, draws)

    def ref_logprobs(self, batch: Batch, draws: list[MaskDraw]) -> list[torch.Tensor | None]:
        """Return [S] of each draw under the reference; None without a KL penalty."""
        return self._learner.ref_logprobs(batch, draws)

    def update(
        self, batch: Batch, draw: MaskDraw, old: torch.Tensor | None, ref: torch.Tensor | None, step: int
    ) -> UpdateStats:
        """Take one clipped update on one draw."""
        return self._learner.update(batch, draw, old, ref, step)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return trainable weights and optimiser state, for a checkpoint."""
        return trainable_state(self._policy), self._learner.optimizer_state()

    def load_state(self, weights: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        """Take what ``state`` returned."""
        set_trainable_state(self._policy, weights)
        self._learner.load_optimizer_state(optimizer)
