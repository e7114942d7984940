"""All rewards of a step at once, each in worker processes that live as long as the run and can be killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from unigrpo.rewards.columns import columns_of
from unigrpo.rewards.isolation import IsolatedScoring, Outcome, Reply, RewardOutageError
from unigrpo.rewards.worker_process import RewardWorker
from unigrpo.settings import RewardSettings
from unigrpo.types import RewardStatus, RewardTable, Rollout

MAX_ITEMS_A_CALL = 64
"""Items that a reward gets in one call, so that its ``timeout_s`` does not depend on the size of a step."""
_MIN_FAILURES_OF_AN_OUTAGE = 3
_NUM_SAMPLES_SHOWN = 3
_SAMPLE_LENGTH = 200


class RewardFailedError(RuntimeError):
    """An item failed and the recipe says ``on_error: raise``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardStats:
    """How the last step went for one reward."""

    num_items: int
    num_errors: int
    """Items that are ERROR or INVALID."""
    num_timeouts: int
    num_restarts: int
    """Workers replaced during the step."""
    seconds: float
    metrics: Mapping[str, float]
    """What the reward gave to ``log_metric``: the mean over its calls, weighted by their items."""
    extras: Mapping[str, tuple[Any, ...]]
    """What the reward gave to ``log_extra``: by column, one value a rollout of the step; None where it gave none."""

    @property
    def error_rate(self) -> float:
        """Return the failed fraction, timeouts apart."""
        return self.num_errors / self.num_items if self.num_items else 0.0

    @property
    def timeout_rate(self) -> float:
        """Return the fraction that hung."""
        return self.num_timeouts / self.num_items if self.num_items else 0.0


@dataclass(kw_only=True)
class _StepLog:
    """What the calls of one reward leave behind in one step; stops the step when too many items fail."""

    name: str
    num_items: int
    max_fraction: float
    failures: list[Outcome] = field(default_factory=list)
    extras: dict[str, dict[int, Any]] = field(default_factory=dict)
    _sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_failure(self, outcome: Outcome) -> None:
        with self._lock:
            self.failures.append(outcome)
            num_failed = len(self.failures)
        if num_failed >= _MIN_FAILURES_OF_AN_OUTAGE and num_failed > self.max_fraction * self.num_items:
            samples = "; ".join(failed.reason[:_SAMPLE_LENGTH] for failed in self.failures[:_NUM_SAMPLES_SHOWN])
            raise RewardOutageError(
                f"reward {self.name!r} failed on {num_failed} of {self.num_items} items of this step, more than "
                f"{self.max_fraction:.0%}: {samples}. Fix the reward, or raise its timeout_s if it is only slow"
            )

    def note_reply(self, rows: Sequence[int], reply: Reply) -> None:
        with self._lock:
            for name, value in reply.metrics.items():
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value * len(rows), count + len(rows))
            for column, values in reply.extras.items():
                self.extras.setdefault(column, {}).update(zip(rows, values, strict=True))

    @property
    def metrics(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self._sums.items()}


class RewardPool:
    """The rewards of a recipe, ready to score.

    Example:
        >>> with RewardPool({"format": RewardSettings(use="unigrpo.rewards.format:Format")}) as pool:
        ...     table = pool.score(rollouts)
    """

    def __init__(
        self,
        settings: Mapping[str, RewardSettings],
        *,
        folder: Path | None = None,
        start_timeout_s: float = 600.0,
        max_failed_fraction: float = 0.2,
    ) -> None:
        """Set up; :meth:`start` starts the processes.

        Args:
            settings: the recipe's rewards by name; a step's items are shared out among the workers of each.
            folder: where relative paths of ``use:`` start; None is the working directory.
            start_timeout_s: for making a reward, its downloads included.
            max_failed_fraction: failed items of one reward in one step beyond which the run stops (from three items).

        Raises:
            ValueError: for ``on_error: value`` without ``error_value``.
        """
        for name, reward in settings.items():
            if reward.on_error == "value" and reward.error_value is None:
                raise ValueError(f"reward {name!r} has on_error: value but no error_value; give the value")
        self._settings = dict(settings)
        self._max_failed_fraction = max_failed_fraction
        self._workers = {
            name: [
                RewardWorker(name=name, settings=reward, folder=folder, start_timeout_s=start_timeout_s)
                for _ in range(reward.num_workers)
            ]
            for name, reward in settings.items()
        }
        self._executor: ThreadPoolExecutor | None = None
        self.last_stats: dict[str, RewardStats] = {}
        """By reward, of the last step."""

    def start(self) -> None:
        """Start all workers and return at once: rewards load while the caller loads a policy."""
        if self._executor is None:
            num_threads = max(1, sum(map(len, self._workers.values())) + len(self._workers))
            self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="reward")
        for worker in self._all_workers():
            worker.open()

    def wait_until_loaded(self) -> None:
        """Wait until every reward is made; scoring does so, too.

        Raises:
            RewardLoadError: naming the reward that could not be made.
        """
        self.start()
        for worker in self._all_workers():
            worker.wait_until_loaded()

    def score(self, rollouts: Sequence[Rollout], *, step: int = 0) -> RewardTable:
        """Return every reward of every rollout; the rewards run at the same time.

        Args:
            rollouts: N rollouts, in the order of the table's rows.
            step: the learner step, for rewards that ask for ``trainer_state``.

        Raises:
            RewardContractError: if a reward does not return one value a completion.
            RewardOutageError: if a reward fails on too many items.
            RewardFailedError: if one fails and the recipe says so.
            RewardLoadError: if a reward could not be made.
        """
        self.start()
        assert self._executor is not None
        running = {name: self._executor.submit(self._score_reward, name, rollouts, step) for name in self._settings}
        columns = {name: _result(future, running.values()) for name, future in running.items()}
        return self._table(rollouts, columns)

    @property
    def names_wanting_completion_ids(self) -> tuple[str, ...]:
        """Return the rewards that count tokens; known once they are loaded."""
        return tuple(name for name, workers in self._workers.items() if workers[0].traits.wants_completion_ids)

    def close(self) -> None:
        """End all workers."""
        for worker in self._all_workers():
            worker.close()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __enter__(self) -> Self:
        """Start the workers."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()

    def _all_workers(self) -> list[RewardWorker]:
        return [worker for workers in self._workers.values() for worker in workers]

    def _score_reward(self, name: str, rollouts: Sequence[Rollout], step: int) -> list[Outcome]:
        """Return one outcome a rollout of one reward, and note its statistics."""
        assert self._executor is not None
        start_s = time.perf_counter()
        settings, workers = self._settings[name], self._workers[name]
        num_restarts = sum(worker.num_restarts for worker in workers)
        rows = [row for row, r in enumerate(rollouts) if settings.tasks is None or r.prompt.task in settings.tasks]
        log = _StepLog(name=name, num_items=len(rows), max_fraction=self._max_failed_fraction)
        shares = [rows[index :: len(workers)] for index in range(len(workers))]
        running = [
            self._executor.submit(_score_share, worker, rollouts, share, step, log)
            for worker, share in zip(workers, shares, strict=True)
        ]
        outcomes = [Outcome(value=None, status=RewardStatus.NOT_APPLICABLE)] * len(rollouts)
        for future in running:
            for row, outcome in _result(future, running).items():
                outcomes[row] = outcome
        num_timeouts = sum(outcome.status is RewardStatus.TIMEOUT for outcome in log.failures)
        self.last_stats[name] = RewardStats(
            num_items=len(rows),
            num_errors=len(log.failures) - num_timeouts,
            num_timeouts=num_timeouts,
            num_restarts=sum(worker.num_restarts for worker in workers) - num_restarts,
            seconds=time.perf_counter() - start_s,
            metrics=log.metrics,
            extras={
                column: tuple(by_row.get(row) for row in range(len(rollouts))) for column, by_row in log.extras.items()
            },
        )
        return outcomes

    def _table(self, rollouts: Sequence[Rollout], columns: Mapping[str, Sequence[Outcome]]) -> RewardTable:
        names = tuple(self._settings)
        shape = (len(rollouts), len(names))
        values, status = np.full(shape, np.nan), np.full(shape, RewardStatus.NOT_APPLICABLE, dtype=np.int8)
        is_dropped = np.zeros(len(rollouts), dtype=bool)
        groups = groups_of(rollouts)
        for k, name in enumerate(names):
            settings = self._settings[name]
            for row, outcome in enumerate(columns[name]):
                status[row, k] = outcome.status
                values[row, k] = np.nan if outcome.value is None else outcome.value
                if outcome.status not in (RewardStatus.ERROR, RewardStatus.INVALID):
                    continue
                if settings.on_error == "raise":
                    raise RewardFailedError(
                        f"reward {name!r} failed on sample {rollouts[row].sample_index} of prompt "
                        f"{rollouts[row].prompt.id!r}: {outcome.reason}; on_error: mask would go on without it"
                    )
                if settings.on_error == "value":
                    values[row, k] = settings.error_value
                elif settings.on_error == "drop_group":
                    is_dropped |= groups == groups[row]
        values[is_dropped] = np.nan
        return RewardTable(
            names=names,
            values=values,
            status=status,
            weights=np.array([self._settings[name].weight for name in names], dtype=np.float64),
            ranges=tuple(self._workers[name][0].range for name in names),
        )


def _result(future: Future[Any], siblings: Any) -> Any:
    """Return a future's result; if it failed, wait for its siblings first, so that no worker is left mid-message."""
    if future.exception() is not None:
        for sibling in siblings:
            sibling.exception()
    return future.result()


def _score_share(
    worker: RewardWorker, rollouts: Sequence[Rollout], rows: Sequence[int], step: int, log: _StepLog
) -> dict[int, Outcome]:
    """Return the outcomes of one worker's share of the rollouts, call by call."""
    worker.wait_until_loaded()  # A range is needed even where no rollout is of the reward's tasks.
    outcomes: dict[int, Outcome] = {}
    for start in range(0, len(rows), MAX_ITEMS_A_CALL):
        outcomes |= _score_call(worker, rollouts, rows[start : start + MAX_ITEMS_A_CALL], step, log)
    return outcomes


def _score_call(
    worker: RewardWorker, rollouts: Sequence[Rollout], rows: Sequence[int], step: int, log: _StepLog
) -> dict[int, Outcome]:
    columns = columns_of(
        [rollouts[row] for row in rows],
        wanted=worker.traits.wanted_columns,
        with_completion_ids=worker.traits.wants_completion_ids,
    )
    index_of = {row: index for index, row in enumerate(rows)}

    def call(items: Sequence[int]) -> Reply:
        chosen = [index_of[item] for item in items]
        reply = worker.call({name: [column[index] for index in chosen] for name, column in columns.items()}, step)
        log.note_reply(items, reply)
        return reply

    scoring = IsolatedScoring(call=call, name=worker.name, minimum=worker.range[0], on_failure=log.note_failure)
    return scoring.score(rows)


def groups_of(rollouts: Sequence[Rollout]) -> np.ndarray:
    """Return [N] int64, the number of each row's group: a run of rows of one prompt whose sample indices rise."""
    numbers, number = [], 0
    for previous, rollout in zip((None, *rollouts), rollouts, strict=False):
        if previous is not None and (
            (previous.prompt.task, previous.prompt.id) != (rollout.prompt.task, rollout.prompt.id)
            or rollout.sample_index <= previous.sample_index
        ):
            number += 1
        numbers.append(number)
    return np.array(numbers, dtype=np.int64)
