"""All rewards of a step at once, each in worker processes that live as long as the run and can be killed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from unigrpo.rewards.child import Child, ChildDiedError, ChildTimeoutError
from unigrpo.rewards.isolation import IsolatedScoring, Outcome, Reply, RewardOutageError, outcomes_of
from unigrpo.settings import RewardSettings
from unigrpo.types import RewardStatus, RewardTable, Rollout

_LOGGER = logging.getLogger(__name__)

_MIN_FAILURES_OF_AN_OUTAGE = 3
_NUM_SAMPLES_SHOWN = 3
_SAMPLE_LENGTH = 200


class RewardLoadError(RuntimeError):
    """A reward could not be made: its name, and why."""


class RewardPoolClosedError(RuntimeError):
    """The pool was closed while it scored."""


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
    """What the reward gave to ``log_metric``."""

    @property
    def error_rate(self) -> float:
        """Return the failed fraction, timeouts apart."""
        return self.num_errors / self.num_items if self.num_items else 0.0

    @property
    def timeout_rate(self) -> float:
        """Return the fraction that hung."""
        return self.num_timeouts / self.num_items if self.num_items else 0.0


@dataclass(kw_only=True)
class _RewardWorker:
    """One worker process of one reward; replaced when it is killed or dies."""

    name: str
    settings: RewardSettings
    folder: Path | None
    start_timeout_s: float
    num_restarts: int = 0
    range: tuple[float, float] = (0.0, 1.0)
    wanted_columns: frozenset[str] | None = None
    wants_completion_ids: bool = False
    _child: Child | None = None
    _is_loaded: bool = False
    _is_closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Start the process, also after :meth:`close`."""
        self._is_closed = False
        self.start()

    def start(self) -> None:
        """Start the process and hand it its order; it loads while the caller goes on.

        Raises:
            RewardPoolClosedError: if the pool was closed meanwhile.
        """
        if self._child is not None and self._child.is_alive:
            return
        with self._lock:
            if self._is_closed:
                raise RewardPoolClosedError(f"reward {self.name!r} was closed while it scored")
            self.num_restarts += self._child is not None
            self._is_loaded = False
            self._child = Child("unigrpo.rewards.worker")
        order = {"use": self.settings.use, "arguments": self.settings.arguments, "name": self.name}
        self._child.send({"load": order | {"folder": str(self.folder) if self.folder else None}})

    def wait_until_loaded(self) -> None:
        """Wait for the reward to be made.

        Raises:
            RewardLoadError: if it could not be.
        """
        self.start()
        if self._is_loaded:
            return
        assert self._child is not None
        try:
            reply = self._child.receive(timeout_s=self.start_timeout_s)
        except (ChildDiedError, ChildTimeoutError) as error:
            raise RewardLoadError(f"reward {self.name!r} ({self.settings.use}) did not start: {error}") from error
        if "error" in reply:
            self.close()
            raise RewardLoadError(
                f"reward {self.name!r} ({self.settings.use}) could not be made: {reply['error']}\n{reply['traceback']}"
            )
        self.range = (float(reply["range"][0]), float(reply["range"][1]))
        wanted = reply["wanted_columns"]
        self.wanted_columns = None if wanted is None else frozenset(wanted)
        self.wants_completion_ids = reply["wants_completion_ids"]
        self._is_loaded = True

    def call(self, columns: Mapping[str, Any], step: int) -> Reply:
        """Return the outcomes of one batch, or raise as :mod:`unigrpo.rewards.isolation` says."""
        self.wait_until_loaded()
        assert self._child is not None
        self._child.send({"columns": columns, "step": step, "deadline_s": self.settings.timeout_s})
        return outcomes_of(self._child.receive(timeout_s=self.settings.timeout_s))

    def close(self) -> None:
        """End the process, and let no retry start another."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                self._child.kill()


@dataclass(kw_only=True)
class _Failures:
    """Counts the failed items of one reward in one step; stops the step when they are too many."""

    name: str
    num_items: int
    max_fraction: float
    outcomes: list[Outcome] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes.append(outcome)
            num_failed = len(self.outcomes)
        if num_failed >= _MIN_FAILURES_OF_AN_OUTAGE and num_failed > self.max_fraction * self.num_items:
            samples = "; ".join(failed.reason[:_SAMPLE_LENGTH] for failed in self.outcomes[:_NUM_SAMPLES_SHOWN])
            raise RewardOutageError(
                f"reward {self.name!r} failed on {num_failed} of {self.num_items} items of this step, more than "
                f"{self.max_fraction:.0%}: {samples}. Fix the reward, or raise its timeout_s if it is only slow"
            )


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
        num_workers: int = 1,
        folder: Path | None = None,
        start_timeout_s: float = 600.0,
        max_failed_fraction: float = 0.2,
    ) -> None:
        """Set up; :meth:`start` starts the processes.

        Args:
            settings: the recipe's rewards by name.
            num_workers: processes a reward; a step's items are shared out among them.
            folder: where relative paths of ``use:`` start; None is the working directory.
            start_timeout_s: for making a reward, its downloads included.
            max_failed_fraction: failed items of one reward in one step beyond which the run stops (from three items).

        Raises:
            ValueError: for ``on_error: value`` without ``error_value``, or no worker.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; a reward needs at least 1")
        for name, reward in settings.items():
            if reward.on_error == "value" and reward.error_value is None:
                raise ValueError(f"reward {name!r} has on_error: value but no error_value; give the value")
        self._settings = dict(settings)
        self._max_failed_fraction = max_failed_fraction
        self._workers = {
            name: [
                _RewardWorker(name=name, settings=reward, folder=folder, start_timeout_s=start_timeout_s)
                for _ in range(num_workers)
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

    def _all_workers(self) -> list[_RewardWorker]:
        return [worker for workers in self._workers.values() for worker in workers]

    def _score_reward(self, name: str, rollouts: Sequence[Rollout], step: int) -> list[Outcome]:
        """Return one outcome a rollout of one reward, and note its statistics."""
        assert self._executor is not None
        start_s = time.perf_counter()
        settings, workers = self._settings[name], self._workers[name]
        num_restarts = sum(worker.num_restarts for worker in workers)
        rows = [row for row, r in enumerate(rollouts) if settings.tasks is None or r.prompt.task in settings.tasks]
        failures = _Failures(name=name, num_items=len(rows), max_fraction=self._max_failed_fraction)
        metrics: dict[str, float] = {}
        shares = [rows[index :: len(workers)] for index in range(len(workers))]
        running = [
            self._executor.submit(_score_share, worker, rollouts, share, step, failures, metrics)
            for worker, share in zip(workers, shares, strict=True)
        ]
        outcomes = [Outcome(value=None, status=RewardStatus.NOT_APPLICABLE)] * len(rollouts)
        for future in running:
            for row, outcome in _result(future, running).items():
                outcomes[row] = outcome
        num_timeouts = sum(outcome.status is RewardStatus.TIMEOUT for outcome in failures.outcomes)
        self.last_stats[name] = RewardStats(
            num_items=len(rows),
            num_errors=len(failures.outcomes) - num_timeouts,
            num_timeouts=num_timeouts,
            num_restarts=sum(worker.num_restarts for worker in workers) - num_restarts,
            seconds=time.perf_counter() - start_s,
            metrics=metrics,
        )
        return outcomes

    def _table(self, rollouts: Sequence[Rollout], columns: Mapping[str, Sequence[Outcome]]) -> RewardTable:
        names = tuple(self._settings)
        shape = (len(rollouts), len(names))
        values, status = np.full(shape, np.nan), np.full(shape, RewardStatus.NOT_APPLICABLE, dtype=np.int8)
        is_dropped = np.zeros(len(rollouts), dtype=bool)
        prompt_ids = np.array([rollout.prompt.id for rollout in rollouts], dtype=object)
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
                    is_dropped |= prompt_ids == prompt_ids[row]
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
    worker: _RewardWorker,
    rollouts: Sequence[Rollout],
    rows: Sequence[int],
    step: int,
    failures: _Failures,
    metrics: dict[str, float],
) -> dict[int, Outcome]:
    """Return the outcomes of one worker's share of the rollouts."""
    worker.wait_until_loaded()  # A range is needed even where no rollout is of the reward's tasks.
    if not rows:
        return {}
    columns = columns_of(
        [rollouts[row] for row in rows],
        wanted=worker.wanted_columns,
        with_completion_ids=worker.wants_completion_ids,
    )
    index_of = {row: index for index, row in enumerate(rows)}

    def call(items: Sequence[int]) -> Reply:
        chosen = [index_of[item] for item in items]
        reply = worker.call({name: [column[index] for index in chosen] for name, column in columns.items()}, step)
        metrics.update(reply.metrics)
        return reply

    scoring = IsolatedScoring(call=call, name=worker.name, minimum=worker.range[0], on_failure=failures.note)
    return scoring.score(rows)


def columns_of(
    rollouts: Sequence[Rollout], *, wanted: frozenset[str] | None = None, with_completion_ids: bool = False
) -> dict[str, list[Any]]:
    """Return what a reward is called with: prompts, completions and the wanted data columns by name.

    A completion is a picture (PIL) where the rollout made one, else its text. A column that some prompts lack is None
    there; ``answer``, ``images`` and ``task`` are the prompt's own.
    """
    from PIL import Image

    prompts = [rollout.prompt for rollout in rollouts]
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns: dict[str, list[Any]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in names if wanted is None or name in wanted
    }
    own = {"answer": lambda p: p.answer, "images": lambda p: list(p.images), "task": lambda p: p.task}
    columns |= {name: [read(p) for p in prompts] for name, read in own.items() if wanted is None or name in wanted}
    if with_completion_ids:
        columns["completion_ids"] = [rollout.token_ids[rollout.is_completion].tolist() for rollout in rollouts]
    columns["prompts"] = [prompt.text for prompt in prompts]
    columns["completions"] = [
        (rollout.text or "") if rollout.image is None else Image.fromarray(rollout.image) for rollout in rollouts
    ]
    return columns
