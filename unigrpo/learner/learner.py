"""The learner: noise draws, log-probs under old and reference, and clipped updates by micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unigrpo.errors import UserError
from unigrpo.learner.logprobs import token_logprobs
from unigrpo.learner.optimizer import Optimizer
from unigrpo.methods.objectives.clipped import SurrogateStats, surrogate_loss
from unigrpo.models.adapter import adapter_disabled
from unigrpo.settings import LearnerSettings, ObjectiveSettings
from unigrpo.types import Batch, MaskDraw, ModelInput

if TYPE_CHECKING:
    from unigrpo.methods.estimators.base import Estimator
    from unigrpo.models.base import Policy


class LearnerStoppedError(UserError):
    """Too many updates in a row had non-finite gradients: the weights of the last good one are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateStats:
    """What one inner update did."""

    loss: float
    policy_loss: float
    kl: float
    ratio_mean: float
    clip_fraction: float
    clamped_fraction: float
    entropy: float
    grad_norm: float
    lr: float
    mask_ratio: float
    num_scored: int
    num_empty: int
    is_skipped: bool
    """Whether the gradient was not finite, so that the weights did not move."""


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


class Learner:
    """One rank's policy, optimizer and estimator."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        estimator: Estimator,
        objective: ObjectiveSettings,
        settings: LearnerSettings,
        num_steps: int,
    ) -> None:
        """Make the optimizer over the policy's trainable weights.

        Args:
            policy: the model that trains.
            reference: a frozen copy; None is the policy's own base with the adapter off.
            estimator: draws the noise.
            objective: clip and KL.
            settings: optimizer and micro-batches.
            num_steps: learner steps of the run, for the schedule of the rate.
        """
        self._policy, self._reference, self._estimator = policy, reference, estimator
        self._objective, self._settings = objective, settings
        self._optimizer = Optimizer(policy.module, settings, num_steps)
        self._num_skipped_in_a_row = 0

    def draw(self, batch: Batch, step: int) -> list[MaskDraw]:
        """Return the noise of every inner update of a step."""
        num_updates, mask_token_id = self._settings.num_inner_updates, self._policy.vocabulary.mask_token_id
        return [self._estimator.draw(batch, step, n, num_updates, mask_token_id) for n in range(num_updates)]

    def old_logprobs(self, batch: Batch, draws: list[MaskDraw]) -> list[torch.Tensor | None]:
        """Return [S] of each draw under the policy as it is before the step's first update.

        The first draw's are the first update's own, detached, and need no pass: None.
        """
        return [None, *(self._logprobs(self._policy, batch, draw) for draw in draws[1:])]

    def ref_logprobs(self, batch: Batch, draws: list[MaskDraw]) -> list[torch.Tensor | None]:
        """Return [S] of each draw under the reference; None without a KL penalty."""
        if self._objective.kl_coef == 0:
            return [None] * len(draws)
        if self._reference is not None:
            return [self._logprobs(self._reference, batch, draw) for draw in draws]
        with adapter_disabled(self._policy):
            return [self._logprobs(self._policy, batch, draw) for draw in draws]

    @torch.no_grad()
    def _logprobs(self, policy: Policy, batch: Batch, draw: MaskDraw) -> torch.Tensor:
        parts = [self._score(policy, batch, rows) for rows in self._micro_batches(batch, draw)]
        return torch.cat(parts)

    def _score(self, policy: Policy, batch: Batch, rows: _Rows) -> torch.Tensor:
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
                advantages=batch.advantages[rollout][:, None].expand(-1, length)[is_scored],
                weight=draw.weight[part, :length][is_scored],
            )

    def update(
        self, batch: Batch, draw: MaskDraw, old: torch.Tensor | None, ref: torch.Tensor | None, step: int
    ) -> UpdateStats:
        """Take one clipped update on one draw.

        Weights in the draw are global, so the gradients of the micro-batches add up to the batch's. A non-finite
        gradient leaves the weights as they are and is counted.

        Args:
            batch: the step's rollouts.
            draw: the noise of this inner update.
            old: [S] log-probs under the policy that generated; None takes this update's own (ratio exactly 1).
            ref: [S] log-probs under the reference; None is no penalty.
            step: learner step, for the rate.

        Raises:
            LearnerStoppedError: after too many skipped updates in a row.
        """
        loss, stats = self._accumulate(batch, draw, old, ref)
        grad_norm = self._optimizer.clip_gradients()
        is_skipped = not (bool(torch.isfinite(grad_norm)) and math.isfinite(loss))
        if not is_skipped:
            self._optimizer.update(step)
        self._optimizer.clear_gradients()
        self._count_skipped(is_skipped)
        return UpdateStats(
            loss=loss,
            policy_loss=float(stats.policy_loss),
            kl=stats.kl_mean,
            ratio_mean=stats.ratio_mean,
            clip_fraction=stats.clip_fraction,
            clamped_fraction=stats.clamped_fraction,
            entropy=stats.entropy,
            grad_norm=float(grad_norm),
            lr=self._optimizer.rate(step),
            mask_ratio=float(draw.mask_ratio.mean()),
            num_scored=int(draw.is_scored.sum()),
            num_empty=draw.num_empty,
            is_skipped=is_skipped,
        )

    def _accumulate(
        self, batch: Batch, draw: MaskDraw, old: torch.Tensor | None, ref: torch.Tensor | None
    ) -> tuple[float, SurrogateStats]:
        total, summed, first = 0.0, None, 0
        for rows in self._micro_batches(batch, draw):
            logprobs = self._score(self._policy, batch, rows)
            scored = slice(first, first + len(logprobs))
            first = scored.stop
            loss, stats = surrogate_loss(
                logprobs,
                logprobs.detach() if old is None else old[scored],
                None if ref is None else ref[scored],
                rows.advantages,
                rows.weight,
                self._objective.clip_eps,
                self._objective.kl_coef,
                self._objective.kl,
            )
            loss.backward()
            total += float(loss.detach())
            summed = stats if summed is None else summed + stats
        assert summed is not None  # a batch has rows
        return total, summed

    def _count_skipped(self, is_skipped: bool) -> None:
        self._num_skipped_in_a_row = self._num_skipped_in_a_row + 1 if is_skipped else 0
        if self._num_skipped_in_a_row > self._settings.max_skipped_updates:
            raise LearnerStoppedError(
                f"{self._num_skipped_in_a_row} updates in a row had non-finite gradients (learner.max_skipped_updates="
                f"{self._settings.max_skipped_updates}); lower learner.lr, or resume from an earlier checkpoint"
            )

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Return the moments and step counts of the optimizer by weight name, for a checkpoint."""
        return self._optimizer.state()

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take what ``optimizer_state`` returned.

        Raises:
            ValueError: if it belongs to other weights.
        """
        self._optimizer.load_state(state)
