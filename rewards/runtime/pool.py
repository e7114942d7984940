"""All rewards of a step at once, each in worker processes that live as long as the run and can be killed.

The trip of a completion to its reward and back, one object a line::

    RewardPool        pool.py               all rewards at once; their values become the table of the step
    RewardScorer      scorer.py             one reward: what is known is looked up, equal items go once, workers share
    score_rows        calls.py              some rows as columns in one call, in several where one fails (isolation.py)
    RewardProcess     process.py            one worker process: loaded, asked in turns, replaced when it dies
    Child             process/child.py      its socket, deadline and end; on a Ray cluster process/remote_child.py
    Worker            process/worker.py     inside the process: makes each reward once, and answers calls
    AdaptedReward     process/adapt.py      the function of the recipe with the columns that it names
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from unigrpo.errors import UserError
from unigrpo.lru import LruCache
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.runtime.cache import MAX_ENTRIES_IN_MEMORY, DiskCache
from unigrpo.rewards.runtime.calls import Step
from unigrpo.rewards.runtime.digests import StepDigests
from unigrpo.rewards.runtime.journal import ScoredStep
from unigrpo.rewards.runtime.process import RewardProcess
from unigrpo.rewards.runtime.reward_checks import beyond_range, composition_problems, logged_only
from unigrpo.rewards.runtime.scorer import RewardScorer, result_of
from unigrpo.rewards.runtime.step_log import RewardStats
from unigrpo.rewards.runtime.table import RewardFailedError, groups_of, ok_values, table_of, values_beyond
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Rollout

__all__ = ["MAX_ITEMS_A_CALL", "RewardFailedError", "RewardPool", "RewardStats", "groups_of"]

_LOGGER = logging.getLogger(__name__)

MAX_ITEMS_A_CALL = RewardSettings.model_fields["batch_size"].default
"""Items that a reward gets in one call where the recipe does not say: its ``timeout_s`` is of a call, not of a step."""


class RewardPool:
    """The rewards of a recipe, ready to score. Several threads may score at once.

    Example:
        >>> with RewardPool({"format": RewardSettings(use="unigrpo.rewards.format:Format")}) as pool:
        ...     scored = pool.score(rollouts)
        ...     pool.remember(scored)
    """

    def __init__(
        self,
        settings: Mapping[str, RewardSettings],
        *,
        folder: Path | None = None,
        start_timeout_s: float = 600.0,
        max_failed_fraction: float | None = None,
    ) -> None:
        """Set up; :meth:`start` starts the processes.

        Args:
            settings: the recipe's rewards by name; a step's items are shared out among the workers of each.
            folder: where relative paths start, of ``use:`` and of code that arguments name; None is the working
                directory.
            start_timeout_s: for making a reward, its downloads included.
            max_failed_fraction: in place of every reward's own.

        Raises:
            ValueError: for settings that do not fit together.
        """
        problems = composition_problems(settings)
        if problems:
            raise ValueError("; ".join(problems))
        self._settings = dict(settings)
        self._memory: LruCache[bytes, float] = LruCache(MAX_ENTRIES_IN_MEMORY)
        self._processes: dict[tuple[str, str, int], RewardProcess] = {}
        self._scorers: dict[str, RewardScorer] = {}
        for name, reward in settings.items():
            self._scorers[name] = RewardScorer(
                name,
                reward,
                [self._process(name, reward, number, folder, start_timeout_s) for number in range(reward.num_workers)],
                self._memory,
                max_failed_fraction=reward.max_failed_fraction if max_failed_fraction is None else max_failed_fraction,
                is_logged_only=name in logged_only(settings),
            )
        self._executor: ThreadPoolExecutor | None = None
        self._warned: set[str] = set()
        """Rewards that gave a value outside of their range."""
        self._num_scoring = 0
        self._lock = threading.Lock()

    @property
    def is_scoring(self) -> bool:
        """Return whether any thread is in :meth:`score`."""
        return self._num_scoring > 0

    def start(self) -> None:
        """Start all workers and return at once: rewards load while the caller loads a policy.

        Raises:
            RewardCacheError: if a ``cache_file`` cannot be used.
        """
        with self._lock:
            if self._executor is None:
                num_threads = max(1, sum(reward.num_workers for reward in self._settings.values()))
                self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="reward")
                self._open_files()
        for process in self._processes.values():
            process.open()

    def wait_until_loaded(self) -> None:
        """Wait until every reward is made; scoring does so, too.

        Raises:
            RewardLoadError: naming the reward that could not be made.
        """
        self.start()
        for process in self._processes.values():
            process.wait_until_loaded()
        self._ranges()

    def _ranges(self) -> list[tuple[float, float]]:
        """Return the range of every reward, which are loaded.

        Raises:
            UserError: if the recipe's ``clip`` or ``pass_at`` lies outside of one.
        """
        ranges = [scorer.traits.range for scorer in self._scorers.values()]
        pairs = zip(self._settings.items(), ranges, strict=True)
        if problems := [problem for (name, reward), one in pairs for problem in beyond_range(name, reward, one)]:
            raise UserError("; ".join(problems))
        return ranges

    def score(self, rollouts: Sequence[Rollout], *, step: int = 0) -> ScoredStep:
        """Return every reward of every rollout; the rewards run at the same time.

        Later steps know its values once they are given to :meth:`remember`.

        Args:
            rollouts: N rollouts, in the order of the table's rows.
            step: the learner step, for rewards that ask for ``trainer_state``.

        Raises:
            RewardContractError: if a reward does not return one value a completion.
            RewardOutageError: if a reward fails on too many items; one of weight 0 that gates nothing goes on without.
            RewardFailedError: if one fails and the recipe says so.
            RewardLoadError: if a reward could not be made.
            KeyboardInterrupt: if a signal handler raises it meanwhile; then the workers have been ended.
        """
        with self._lock:
            self._num_scoring += 1
        try:
            return self._score(rollouts, step)
        except KeyboardInterrupt:
            self._end_processes()
            raise
        finally:
            with self._lock:
                self._num_scoring -= 1

    def _score(self, rollouts: Sequence[Rollout], step: int) -> ScoredStep:
        self.start()
        executor = self._executor
        assert executor is not None
        group_ids = groups_of(rollouts)
        given = Step(number=step, rollouts=rollouts, group_ids=group_ids.tolist(), digests=StepDigests(rollouts))
        with ThreadPoolExecutor(max(1, len(self._scorers)), thread_name_prefix="reward-step") as threads:
            running = {name: threads.submit(scorer.score, given, executor) for name, scorer in self._scorers.items()}
            try:
                scored = {name: result_of(future, list(running.values())) for name, future in running.items()}
            except KeyboardInterrupt:
                self._end_processes()  # Else the threads would be waited for as long as the workers take.
                raise
        outcomes = {name: found.outcomes for name, found in scored.items()}
        stats = {name: found.stats for name, found in scored.items()}
        table = table_of(self._settings, self._ranges(), rollouts, group_ids, outcomes)
        return ScoredStep(
            table=table,
            keys={name: [key and key.hex() for key in found.keys] for name, found in scored.items()},
            metrics=self._metrics(stats, self._out_of_range(table)),
            reasons={name: [outcome.reason for outcome in found] for name, found in outcomes.items()},
            stats=stats,
        )

    def remember(self, scored: ScoredStep) -> None:
        """Keep the values of a step for later ones: those that are numbers which a reward gave, and no others.

        A run that was resumed gives the steps of its journal, in order, and so knows what it knew before.
        """
        table = scored.table
        for column, name in enumerate(table.names):
            is_ok = (table.status[:, column] == RewardStatus.OK) & np.isfinite(table.values[:, column])
            values = {
                bytes.fromhex(key): float(table.values[row, column])
                for row, key in enumerate(scored.keys.get(name, ()))
                if key is not None and is_ok[row]
            }
            if values and name in self._scorers:
                self._scorers[name].keep(values)

    @property
    def names_wanting_completion_ids(self) -> tuple[str, ...]:
        """Return the rewards that count tokens; known once they are loaded."""
        return tuple(name for name, scorer in self._scorers.items() if scorer.traits.wants_completion_ids)

    def _metrics(self, stats: Mapping[str, RewardStats], out_of_range: Mapping[str, float]) -> dict[str, float]:
        """Return what the metric log says of a step's scoring, apart from its values.

        ``reward/<name>/cache_hit_rate``: the fraction of its items that were not scored anew, because an equal one had
        been in an earlier step or stood in this one. ``reward/<name>/<metric>``: what it gave to ``log_metric``, over
        the items that were scored. ``reward/<name>/out_of_range_rate``: the fraction of its values that lies outside of
        the range that it declares. ``reward/<name>/outage``, of a reward that is logged only: 1 in a step where it
        failed on more than its ``max_failed_fraction`` and the rest was not asked about, else 0.
        """
        found: dict[str, float] = {}
        for name, of_reward in stats.items():
            prefix = f"reward/{name}/"
            if of_reward.num_items:
                found[prefix + "cache_hit_rate"] = of_reward.cache_hit_rate
                found[prefix + "out_of_range_rate"] = out_of_range[name]
                if self._scorers[name].is_logged_only:
                    found[prefix + "outage"] = float(of_reward.is_out)
            found |= {prefix + metric.removeprefix(f"{name}/"): value for metric, value in of_reward.metrics.items()}
        return found

    def _out_of_range(self, table: RewardTable) -> dict[str, float]:
        """Return by reward the fraction of its values outside of their range; warn of the first of each reward."""
        fractions = {}
        for column, name in enumerate(table.names):
            values, (low, high) = ok_values(table, column), table.ranges[column]
            beyond = values_beyond(values, (low, high))
            fractions[name] = len(beyond) / max(1, len(values))
            if len(beyond) and name not in self._warned:
                self._warned.add(name)
                _LOGGER.warning(
                    f"reward {name} gave {beyond[0]:g}, outside of its range [{low:g}, {high:g}]; it counts as it is: "
                    "declare the range of what it gives, or set clip in the recipe"
                )
        return fractions

    def close(self) -> None:
        """End all workers."""
        self._end_processes()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
        for scorer in self._scorers.values():
            scorer.errors.say(is_last=True)
            if scorer.disk is not None:
                scorer.disk.close()
                scorer.disk = None

    def __enter__(self) -> Self:
        """Start the workers."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers."""
        self.close()

    def _end_processes(self) -> None:
        for process in self._processes.values():
            process.close()

    def _open_files(self) -> None:
        """Open each file that rewards keep values in; rewards may share one."""
        files: dict[str, DiskCache] = {}
        for scorer in self._scorers.values():
            path = scorer.settings.cache_file
            if path is not None:
                if path not in files:
                    files[path] = DiskCache(path)
                scorer.disk = files[path]

    def _process(
        self, name: str, reward: RewardSettings, number: int, folder: Path | None, start_timeout_s: float
    ) -> RewardProcess:
        """Return the process of a reward's worker: the one that its ``worker:`` names, or its own."""
        key = ("worker", reward.worker, number) if reward.worker is not None else ("reward", name, number)
        if key not in self._processes:
            self._processes[key] = RewardProcess(settings=reward, folder=folder, start_timeout_s=start_timeout_s)
        return self._processes[key]
