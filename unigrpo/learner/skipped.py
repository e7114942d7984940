"""Updates whose gradient is not finite: why, and when there are too many of them.

Such an update leaves weights and optimizer as they were. A few are a matter of half precision. Many are not, also where
good ones stand between them, so they are counted over a window of updates; and from weights that are not finite nothing
finite follows, so that these stop a run at the first update.
"""

from __future__ import annotations

from collections import deque

import torch

from unigrpo.errors import UserError
from unigrpo.methods.loss import LossOutputs
from unigrpo.types import Batch, MaskDraw

NUM_WATCHED = 100
"""Updates of the window, and ten times as many as may be skipped where that is more."""
MAX_NAMED = 3


class LearnerStoppedError(UserError):
    """No good update is to be expected: the weights of the last good one are kept."""


class SkippedUpdates:
    """How many of the last updates were skipped."""

    def __init__(self, max_skipped: int) -> None:
        """Start with an empty window."""
        self._max_skipped = max_skipped
        self._is_skipped: deque[bool] = deque(maxlen=max(NUM_WATCHED, 10 * max_skipped))

    def take(self, step: int, cause: str) -> None:
        """Take in an update of a step, from 0: why it was skipped, or nothing where it was not.

        Raises:
            LearnerStoppedError: if more of the window were skipped than may be.
        """
        self._is_skipped.append(bool(cause))
        num_skipped = sum(self._is_skipped)
        if cause and num_skipped > self._max_skipped:
            raise LearnerStoppedError(
                f"step {step + 1}: {num_skipped} of the last {len(self._is_skipped)} updates were skipped, the last "
                f"because {cause} not finite (learner.max_skipped_updates={self._max_skipped}); lower learner.lr, or "
                "resume from an earlier checkpoint"
            )


def cause_of(
    sums: LossOutputs,
    grad_norm: torch.Tensor,
    batch: Batch,
    draw: MaskDraw,
    old: torch.Tensor | None,
    ref: torch.Tensor | None,
) -> str:
    """Return the first thing on the way to the gradient that is not finite, with its verb; nothing where all is well.

    Args:
        sums: of the update's loss.
        grad_norm: of its gradient.
        batch: the step's rollouts.
        draw: the noise.
        old: [S] log-probs under the policy that generated; None for the update's own.
        ref: [S] log-probs under the reference, if any.
    """
    if bool(torch.isfinite(grad_norm) & torch.isfinite(sums.loss)):
        return ""
    ordered = {
        "the advantages are": batch.advantages,
        "the log-probs of the old policy are": old,
        "the log-probs of the reference are": ref,
        "the weights of the estimator are": draw.weight,
        "the log-probs of the policy are": sums.nll,
        "the loss is": sums.loss,
    }
    found = (text for text, values in ordered.items() if values is not None and not torch.isfinite(values).all())
    return next(found, "the gradient is")


def refuse_broken_weights(module: torch.nn.Module, whose: str, step: int) -> None:
    """Stop where a model has weights that are not finite: every later update would be skipped, too.

    Raises:
        LearnerStoppedError: naming the weights.
    """
    names = [name for name, weight in module.named_parameters() if not torch.isfinite(weight.detach()).all()]
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise LearnerStoppedError(
            f"step {step + 1}: weights of the {whose} are not finite, in {', '.join(names[:MAX_NAMED])}{more}: nothing "
            "can be learnt from them; give a whole checkpoint, or resume from an earlier one"
        )
