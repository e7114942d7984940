"""The learner: noise draws, log-probs under old and reference, and updates by micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unigrpo.errors import UserError
from unigrpo.learner.batch import collate
from unigrpo.learner.logprobs import token_logprobs
from unigrpo.learner.optimizer import Optimizer, load_training, save_training
from unigrpo.learner.skipped import LearnerStoppedError, SkippedUpdates, cause_of, refuse_broken_weights
from unigrpo.models.adapter import adapter_disabled, state_version, trainable_state
from unigrpo.models.pictures.features import with_image_features
from unigrpo.settings.learning import LearnerSettings
from unigrpo.types import Batch, MaskDraw, ModelInput, PolicyVersion, Rollouts, Span

__all__ = ["Learner", "LearnerStep", "LearnerStoppedError", "UpdateStats"]

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.methods.estimators.base import Estimator
    from unigrpo.methods.loss import Loss, LossOutputs
    from unigrpo.models.base import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateStats:
    """What one inner update did."""

    sums: LossOutputs
    """Over the scored tokens of all micro-batches."""
    grad_norm: float
    """Before it was clipped."""
    lr: float
    mask_ratio: float
    """Mean over the rows of the draw."""
    num_scored: int
    num_empty: int
    skipped_because: str = ""
    """What was not finite, so that the weights did not move; nothing where they did."""

    @property
    def is_skipped(self) -> bool:
        """Return whether the gradient was not finite, so that the weights did not move."""
        return bool(self.skipped_because)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """A micro-batch of a draw, cut to its longest row, with flat vectors of its scored positions."""

    model_input: ModelInput
    targets: torch.Tensor
    is_scored: torch.Tensor
    range_index: torch.Tensor
    advantages: torch.Tensor
    """[S]."""
    weight: torch.Tensor
    """[S]."""
    rollout: torch.Tensor
    """[S] int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerStep:
    """A step that has begun: its draws, and the log-probs of the old policy and the reference on these very draws."""

    learner: Learner
    number: int
    """Learner step, from 0."""
    batch: Batch
    draws: tuple[MaskDraw, ...]
    old_logprobs: tuple[torch.Tensor | None, ...]
    """[S] of each draw, under the policy before the first update; None: the update's own, so that the ratio is 1."""
    ref_logprobs: tuple[torch.Tensor | None, ...]
    """[S] of each draw under the reference; None without a penalty to it."""

    @property
    def num_updates(self) -> int:
        """Return the number of inner updates (the paper's mu)."""
        return len(self.draws)

    def update(self, n: int) -> UpdateStats:
        """Take inner update ``n``; they are taken in order, once each.

        Raises:
            LearnerStoppedError: after too many skipped updates, or one whose cause is a weight that is not finite.
        """
        return self.learner.update(self.batch, self.draws[n], self.old_logprobs[n], self.ref_logprobs[n], self.number)


class Learner:
    """One rank's policy, optimizer and method: what the loop asks of its learner."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        estimator: Estimator,
        loss: Loss,
        settings: LearnerSettings,
        num_steps: int,
    ) -> None:
        """Make the optimizer over the policy's trainable weights.

        Args:
            policy: the model that trains.
            reference: a frozen copy; None is the policy's own base with the adapter off.
            estimator: draws the noise.
            loss: ratio, objective and KL.
            settings: optimizer and micro-batches.
            num_steps: learner steps of the run, for the schedule of the rate.
        """
        self._policy, self._reference, self._estimator = policy, reference, estimator
        self._loss, self._settings = loss, settings
        self._optimizer = Optimizer(policy.module, settings, num_steps)
        self._skipped = SkippedUpdates(settings.max_skipped_updates)

    def begin(self, step: int, rollouts: Rollouts, advantages: np.ndarray) -> LearnerStep:
        """Begin a learner step on its rollouts.

        Args:
            step: from 0; keys the noise and the rate.
            rollouts: N of them.
            advantages: [N].
        """
        policy = self._policy
        batch = collate(rollouts, advantages, policy.vocabulary.pad_token_id, policy.device)
        return self.begin_batch(step, with_image_features(batch, rollouts, policy))

    def begin_batch(self, step: int, batch: Batch) -> LearnerStep:
        """Begin a learner step on a batch: draw its noise, and take the log-probs that must not move with the policy.

        The first draw's old log-probs are the first update's own, detached, and need no pass.

        Raises:
            UserError: if the estimator gives weights that are not finite.
        """
        num_updates, mask_token_id = self._settings.num_inner_updates, self._policy.vocabulary.mask_token_id
        draws = tuple(self._estimator.draw(batch, step, n, num_updates, mask_token_id) for n in range(num_updates))
        if not all(bool(torch.isfinite(draw.weight).all()) for draw in draws):
            name = type(self._estimator).__name__
            raise UserError(f"the estimator {name} gave weights that are not finite at step {step + 1}; mend its draw")
        return LearnerStep(
            learner=self,
            number=step,
            batch=batch,
            draws=draws,
            old_logprobs=(None, *(self.logprobs(batch, draw) for draw in draws[1:])),
            ref_logprobs=self._of_reference(batch, draws),
        )

    def _of_reference(self, batch: Batch, draws: tuple[MaskDraw, ...]) -> tuple[torch.Tensor | None, ...]:
        if not self._loss.needs_reference:
            return (None,) * len(draws)
        if self._reference is not None:
            return tuple(self._detached_logprobs(self._reference, batch, draw) for draw in draws)
        with adapter_disabled(self._policy):
            return tuple(self.logprobs(batch, draw) for draw in draws)

    def logprobs(self, batch: Batch, draw: MaskDraw) -> torch.Tensor:
        """Return [S] of a draw under the policy as it is, in row-major order of ``is_scored``, without gradient."""
        return self._detached_logprobs(self._policy, batch, draw)

    @torch.no_grad()
    def _detached_logprobs(self, policy: Policy, batch: Batch, draw: MaskDraw) -> torch.Tensor:
        parts = [self._logprobs(policy, batch, rows) for rows in self._micro_batches(batch, draw)]
        return torch.cat(parts)

    def _logprobs(self, policy: Policy, batch: Batch, rows: _Rows) -> torch.Tensor:
        return token_logprobs(
            policy,
            rows.model_input,
            rows.targets,
            rows.is_scored,
            rows.range_index,
            batch.ranges,
            self._settings.logprob_chunk,
        )

    def _micro_batches(self, batch: Batch, draw: MaskDraw) -> Iterator[_Rows]:
        """Yield the draw's rows in order, each part without the padding that none of its rows needs."""
        for start in range(0, len(draw.rollout_index), self._settings.micro_batch_rows):
            part = slice(start, start + self._settings.micro_batch_rows)
            rollout = draw.rollout_index[part]
            length = int(batch.lengths[rollout].max())
            is_padding = batch.is_padding[rollout, :length]
            is_scored = draw.is_scored[part, :length]
            targets = batch.token_ids[rollout, :length]

            def flat(values: torch.Tensor, is_scored: torch.Tensor = is_scored) -> torch.Tensor:
                return values[:, None].expand(is_scored.shape)[is_scored]

            yield _Rows(
                model_input=ModelInput(
                    token_ids=draw.noisy_ids[part, :length],
                    is_padding=is_padding if bool(is_padding.any()) else None,
                    image_features=batch.image_features,
                    prompt_lengths=batch.prompt_lengths[rollout],
                    clean_ids=targets,
                ),
                targets=targets,
                is_scored=is_scored,
                range_index=batch.range_index[rollout, :length],
                advantages=flat(batch.advantages[rollout]),
                weight=draw.weight[part, :length][is_scored],
                rollout=flat(rollout),
            )

    def update(
        self, batch: Batch, draw: MaskDraw, old: torch.Tensor | None, ref: torch.Tensor | None, step: int
    ) -> UpdateStats:
        """Take one update on one draw. A non-finite gradient leaves the weights as they are and is counted.

        Args:
            batch: the step's rollouts.
            draw: the noise of this inner update.
            old: [S] log-probs under the policy that generated; None takes this update's own (ratio exactly 1).
            ref: [S] log-probs under the reference; None without a penalty to it.
            step: learner step, for the rate.

        Raises:
            LearnerStoppedError: after too many skipped updates, or one whose cause is a weight that is not finite.
        """
        sums = self.gradient(batch, draw, old, ref)
        grad_norm = self._optimizer.clip_gradients()
        cause = cause_of(sums, grad_norm, batch, draw, old, ref)
        if cause:
            self._refuse_broken_weights(step)
        else:
            self._optimizer.update(step)
        self._optimizer.clear_gradients()
        self._skipped.take(step, cause)
        return UpdateStats(
            sums=sums,
            grad_norm=float(grad_norm),
            lr=self._optimizer.rate(step),
            mask_ratio=float(draw.mask_ratio.mean()),
            num_scored=int(draw.is_scored.sum()),
            num_empty=draw.num_empty,
            skipped_because=cause,
        )

    def gradient(self, batch: Batch, draw: MaskDraw, old: torch.Tensor | None, ref: torch.Tensor | None) -> LossOutputs:
        """Add the gradient of a draw's loss to the policy's weights, by micro-batches; the arguments are `update`'s.

        Weights in the draw are global, so the gradients of the micro-batches add up to the batch's.

        Returns:
            The sums over all micro-batches, detached.
        """
        if not self._loss.is_linear:
            return self._gradient_in_two_passes(batch, draw, old, ref)
        summed, first = None, 0
        for rows in self._micro_batches(batch, draw):
            logprobs = self._logprobs(self._policy, batch, rows)
            scored = slice(first, first + len(logprobs))
            first = scored.stop
            outputs = self._loss(
                logprobs,
                logprobs if old is None else old[scored],
                None if ref is None else ref[scored],
                rows.advantages,
                rows.weight,
                rows.rollout,
            )
            outputs.loss.backward()
            outputs = replace(outputs, loss=outputs.loss.detach())
            summed = outputs if summed is None else summed + outputs
        assert summed is not None  # a batch has rows
        return summed

    def _gradient_in_two_passes(
        self, batch: Batch, draw: MaskDraw, old: torch.Tensor | None, ref: torch.Tensor | None
    ) -> LossOutputs:
        """Do so where tokens depend on one another: d loss / d log-probs of the whole draw, then the chain rule."""
        parts = list(self._micro_batches(batch, draw))
        logprobs = self.logprobs(batch, draw).requires_grad_()
        vectors = [torch.cat([getattr(rows, name) for rows in parts]) for name in ("advantages", "weight", "rollout")]
        outputs = self._loss(logprobs, logprobs if old is None else old, ref, *vectors)
        (slope,) = torch.autograd.grad(outputs.loss, logprobs)
        counts = [len(rows.weight) for rows in parts]
        for rows, part in zip(parts, slope.split(counts), strict=True):
            self._logprobs(self._policy, batch, rows).backward(part)
        return replace(outputs, loss=outputs.loss.detach())

    def _refuse_broken_weights(self, step: int) -> None:
        refuse_broken_weights(self._policy.module, "policy", step)
        if self._reference is not None:
            refuse_broken_weights(self._reference.module, "reference", step)

    def version(self, step: int) -> PolicyVersion:
        """Return the version for a pool that samples with this very policy: nothing is copied or hashed."""
        return PolicyVersion(step=step, kind="full" if self._policy.adapter is None else "adapter", sha256="")

    def weights(self, step: int) -> tuple[dict[str, torch.Tensor], PolicyVersion]:
        """Return copies on CPU of the trainable weights, to be delivered, and their version."""
        state = trainable_state(self._policy)
        return state, state_version(state, step, self.version(step).kind)

    def decode_image(self, token_ids: np.ndarray, span: Span) -> Image:
        """Return the picture of an image span's ids."""
        return self._policy.decode_image(token_ids, span)

    @property
    def num_checkpoint_bytes(self) -> int:
        """Return about how much `save` writes."""
        return self._optimizer.num_bytes

    def save(self, folder: Path) -> None:
        """Write the trainable weights and the optimizer's state into a folder."""
        save_training(self._policy, self._optimizer, folder)

    def load(self, folder: Path) -> None:
        """Take what ``save`` wrote; a UserError where it belongs to other weights."""
        load_training(self._policy, self._optimizer, folder)
