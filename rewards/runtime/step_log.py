"""How a step went for one reward: its failures, what it logged, and when there are too many failures to go on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from unigrpo.rewards.runtime.error_notes import ErrorNotes
from unigrpo.rewards.runtime.isolation import Outcome, RewardOutageError

_MIN_FAILURES_OF_AN_OUTAGE = 3
_NUM_SAMPLES_SHOWN = 3
_SAMPLE_LENGTH = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardStats:
    """How a step went for one reward."""

    num_items: int
    num_restarts: int
    """Workers replaced since the last step."""
    seconds: float
    metrics: Mapping[str, float]
    """What the reward gave to ``log_metric``: the mean over its calls, weighted by their items. Items whose value was
    known, or that repeat another of the step, are in no call, so they do not count here."""
    num_known: int = 0
    """Items whose value was in the cache."""
    num_repeats: int = 0
    """Items equal to another of the step, scored once."""
    is_out: bool = False
    """Whether so many items failed that the rest was not asked about; a reward that counts stops the run instead."""

    @property
    def cache_hit_rate(self) -> float:
        """Return the fraction that was not scored anew: known from an earlier step, or a repeat within this one."""
        return (self.num_known + self.num_repeats) / self.num_items if self.num_items else 0.0


@dataclass(kw_only=True)
class StepLog:
    """What the calls of one reward leave behind in one step; stops the step when too many items fail."""

    name: str
    num_items: int
    max_fraction: float
    errors: ErrorNotes
    """Exceptions of the reward's code, over all steps."""
    num_equal: Mapping[int, int] = field(default_factory=dict)
    """Number of the step's items that each row's outcome stands for; 1 where not named."""
    failed: dict[int, Outcome] = field(default_factory=dict)
    """Failures by row, among the rows that somebody had to score."""
    _sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_failure(self, row: int, outcome: Outcome) -> None:
        """Count a failed row; an answer that a working reward could not end with is no sign of an outage.

        Raises:
            RewardOutageError: with the reward's name and three samples, when there are too many.
        """
        with self._lock:
            self.failed[row] = outcome
            suspects = {row: failed for row, failed in self.failed.items() if not failed.is_from_reward}
            num_failed = sum(self.num_equal.get(row, 1) for row in suspects)
        if (
            not outcome.is_from_reward
            and num_failed >= _MIN_FAILURES_OF_AN_OUTAGE
            and num_failed > self.max_fraction * self.num_items
        ):
            shown = [failed.reason for row, failed in suspects.items() for _ in range(self.num_equal.get(row, 1))]
            samples = "; ".join(reason[:_SAMPLE_LENGTH] for reason in shown[:_NUM_SAMPLES_SHOWN])
            raise RewardOutageError(
                f"reward {self.name!r} failed on {num_failed} of {self.num_items} items of this step, more than "
                f"{self.max_fraction:.0%}: {samples}. Fix the reward, raise its timeout_s if it is only slow, or "
                "have it load in warm_up if only its first call is; "
                "max_failed_fraction is how many it may fail on"
            )

    def note_metrics(self, metrics: Mapping[str, float], num_rows: int) -> None:
        """Keep what a call of so many rows logged."""
        with self._lock:
            for name, value in metrics.items():
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value * num_rows, count + num_rows)

    @property
    def metrics(self) -> dict[str, float]:
        """Return what was logged, each the mean over its items."""
        return {name: total / count for name, (total, count) in self._sums.items()}
