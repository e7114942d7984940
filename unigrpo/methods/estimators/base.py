"""What an estimator is: the rule that draws diffusion noise over a batch and says which positions are scored."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from unigrpo.types import Batch, MaskDraw


@runtime_checkable
class Estimator(Protocol):
    """A rule for noise. A draw is a function of its arguments: no state, no global generator.

    Each row's noise depends on its row seed, the step, the update and the position in the row, never on its padding,
    its neighbours or its place in the batch; so that a retried or differently split batch draws the same. A class whose
    draws have several rows a rollout says so (``rows_per_rollout = 2``), for the arithmetic of `unigrpo check`.
    """

    def draw(self, batch: Batch, step: int, update: int, num_updates: int, mask_token_id: int) -> MaskDraw:
        """Return the noise of one inner update.

        Args:
            batch: all N rollouts of the step, so that weights can be global.
            step: learner step.
            update: 0 .. num_updates - 1.
            num_updates: inner updates of a step (the paper's mu).
            mask_token_id: the noise.
        """
