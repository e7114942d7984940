"""One reward of a recipe over a step: what is known is looked up, equal items go once, the rest is shared out."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

from unigrpo.lru import LruCache
from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.rewards.runtime.cache import DiskCache
from unigrpo.rewards.runtime.calls import Step, score_rows
from unigrpo.rewards.runtime.columns import empty_columns
from unigrpo.rewards.runtime.digests import digest_of
from unigrpo.rewards.runtime.error_notes import ErrorNotes
from unigrpo.rewards.runtime.isolation import Outcome, RewardOutageError
from unigrpo.rewards.runtime.process import RewardLoadError, RewardProcess, Traits
from unigrpo.rewards.runtime.step_log import RewardStats, StepLog
from unigrpo.settings.rewards import RewardSettings

_LOGGER = logging.getLogger(__name__)

_MAX_REST = 64
"""Steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredReward:
    """What one reward made of a step."""

    outcomes: Sequence[Outcome]
    """One a rollout."""
    keys: Sequence[bytes | None]
    """One a rollout, under which its value is kept; None where it is not."""
    stats: RewardStats


class RewardScorer:
    """One reward with its workers and its caches."""

    def __init__(
        self,
        name: str,
        settings: RewardSettings,
        processes: Sequence[RewardProcess],
        memory: LruCache[bytes, float],
        *,
        max_failed_fraction: float,
        is_logged_only: bool = False,
    ) -> None:
        """Set up; the processes are started by their pool.

        Args:
            name: in the recipe.
            settings: of the recipe.
            processes: of its workers, which share its items.
            memory: where values are kept.
            max_failed_fraction: of a step, beyond which the reward is out.
            is_logged_only: whether it then fails the rest of the step, and says so once, rather than stop the run.
        """
        self.name, self.settings, self._processes = name, settings, processes
        self.disk: DiskCache | None = None
        """Set by the pool, where the recipe names a file."""
        self.errors = ErrorNotes(name=name)
        """What the reward's code raised, in all steps."""
        self._memory = memory
        self._max_failed_fraction = max_failed_fraction
        self.is_logged_only = is_logged_only
        self._was_made = False
        self._has_warned_of_outage = self._has_warned_of_columns = False
        self._rest = self._num_resting = 0
        """Steps in which it is not asked since it hung, and how many are left; of a reward that is logged only."""
        self._num_restarts = 0
        """At the end of the last step."""
        self._lock = threading.Lock()
        for process in processes:
            process.add(name, settings)

    @property
    def traits(self) -> Traits:
        """Return what the reward says of itself; it must be loaded."""
        return self._processes[0].traits[self.name]

    @property
    def keeps_values(self) -> bool:
        """Return whether values of earlier steps are used: what the recipe says, else whether the reward repeats."""
        if self.settings.cache is None:
            return self.traits.is_repeatable
        return self.settings.cache != "off" and not self.traits.needs_whole_groups

    def score(self, step: Step, executor: Executor) -> ScoredReward:
        """Return one outcome a rollout, or raise as :meth:`RewardPool.score` says."""
        start_s = time.perf_counter()
        loss = self._load()
        tasks = None if self.settings.tasks is None else set(self.settings.tasks)
        rows = [row for row, r in enumerate(step.rollouts) if tasks is None or tasks & {r.prompt.task, r.prompt.kind}]
        keys = self._keys(step, rows)
        known = self._look_up({key for key in keys.values() if key is not None})
        stand_ins = _stand_ins(rows, keys)
        asked = [row for row in rows if stand_ins[row] == row and keys.get(row) not in known]
        log = StepLog(
            name=self.name,
            num_items=len(rows),
            max_fraction=self._max_failed_fraction,
            errors=self.errors,
            num_equal=Counter(stand_ins.values()),
        )
        try:
            found, is_out = self._answers(step, asked, log, executor, loss)
        finally:
            self.errors.say()
        outcomes = [Outcome(value=None, status=RewardStatus.NOT_APPLICABLE)] * len(step.rollouts)
        for row in rows:
            value = known.get(keys.get(row) or b"")
            outcomes[row] = found[stand_ins[row]] if value is None else Outcome(value=value, status=RewardStatus.OK)
        self._warn_of_columns(step, rows, outcomes)
        num_known = sum(keys.get(row) in known for row in rows)
        stats = RewardStats(
            num_items=len(rows),
            num_restarts=self._new_restarts(),
            seconds=time.perf_counter() - start_s,
            metrics=log.metrics,
            num_known=num_known,
            num_repeats=len(rows) - num_known - len(asked),
            is_out=is_out,
        )
        kept_keys = [keys.get(row) if self.keeps_values else None for row in range(len(step.rollouts))]
        return ScoredReward(outcomes=outcomes, keys=kept_keys, stats=stats)

    def _load(self) -> RewardLoadError | None:
        """Wait for the processes: a range is needed even where no rollout is of the reward's tasks.

        Returns:
            Why a reward that is logged only, and that was made before, could not be made again.
        """
        if self._num_resting:
            return None
        try:
            for process in self._processes:
                process.wait_until_loaded()
        except RewardLoadError as error:
            if not (self.is_logged_only and self._was_made):
                raise
            return error
        self._was_made = True
        return None

    def _new_restarts(self) -> int:
        """Return the restarts since the last step."""
        with self._lock:
            before, self._num_restarts = self._num_restarts, sum(one.num_restarts for one in self._processes)
            return self._num_restarts - before

    def keep(self, values: Mapping[bytes, float]) -> None:
        """Keep values for later steps."""
        self._memory.put(values)
        if self.disk is not None:
            self.disk.put(values)

    def _keys(self, step: Step, rows: Sequence[int]) -> dict[int, bytes | None]:
        if self.traits.needs_whole_groups or not (self.traits.is_repeatable or self.keeps_values):
            return {}
        arguments = json.dumps(self.settings.arguments, sort_keys=True, default=str)
        return step.digests.keys(
            rows,
            identity=digest_of([self.settings.use, arguments, self.traits.identity]),
            wanted=self.traits.wanted_columns,
            with_completion_ids=self.traits.wants_completion_ids,
        )

    def _look_up(self, keys: set[bytes]) -> dict[bytes, float]:
        if not self.keeps_values:
            return {}
        known = self._memory.get(keys)
        if self.disk is not None and len(known) < len(keys):
            known |= self.disk.get(keys.difference(known))
        return known

    def _answers(
        self, step: Step, rows: Sequence[int], log: StepLog, executor: Executor, loss: RewardLoadError | None
    ) -> tuple[dict[int, Outcome], bool]:
        """Return the outcomes of rows that somebody has to score, and whether the reward was out."""
        found: dict[int, Outcome] = {}
        try:
            if loss is not None and rows:
                raise loss
            if self.is_logged_only and rows:
                self._ask_patiently(step, rows, log, executor, found)
            else:
                self._ask(step, rows, log, executor, found)
        except (RewardOutageError, RewardLoadError) as error:
            if not self.is_logged_only:
                raise
            if not self._has_warned_of_outage:
                self._has_warned_of_outage = True
                _LOGGER.warning(
                    f"{error}; it has weight 0 and gates nothing, so the run goes on, without its values where it is "
                    f"out (reward/{self.name}/outage in the metrics); this is said once"
                )
            unasked = Outcome(value=None, status=RewardStatus.ERROR, reason=str(error))
            found |= {row: log.failed.setdefault(row, unasked) for row in rows if row not in found}
            return {row: _without_guess(outcome) for row, outcome in found.items()}, True
        return found, False

    def _ask_patiently(
        self, step: Step, rows: Sequence[int], log: StepLog, executor: Executor, found: dict[int, Outcome]
    ) -> None:
        """Ask a reward that may cost the run nothing: after a step in which it hung it rests, then gets one item first.

        It rests for 1, 2, 4, ... up to 64 steps, as long as it hangs.

        Raises:
            RewardOutageError: if it is down, hangs on all that it is asked, or rests.
        """
        if self._num_resting:
            self._num_resting -= 1
            raise RewardOutageError(f"reward {self.name!r} was not asked, because it hung in an earlier step")
        try:
            if self._rest:
                unit = _units(rows, step.group_ids if self.traits.needs_whole_groups else None)[0]
                self._ask(step, unit, log, executor, found)
                self._refuse_hanging(found)
            self._ask(step, [row for row in rows if row not in found], log, executor, found)
            self._refuse_hanging(found)
        except RewardOutageError:
            has_hung = any(map(_is_hang, log.failed.values()))
            self._rest = min(_MAX_REST, max(1, 2 * self._rest)) if has_hung else 0
            self._num_resting = self._rest
            raise
        self._rest = 0

    def _refuse_hanging(self, found: Mapping[int, Outcome]) -> None:
        hanging = [outcome for outcome in found.values() if _is_hang(outcome)]
        if hanging and len(hanging) == len(found):
            raise RewardOutageError(
                f"reward {self.name!r} gave no answer for any of the {len(hanging)} items that it was asked about: "
                f"{hanging[0].reason}. It is down, or much slower than its timeout_s"
            )

    def _warn_of_columns(self, step: Step, rows: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        """Say once that a reward applies to nothing where the data lacks what it reads."""
        is_silent = all(outcomes[row].status is RewardStatus.NOT_APPLICABLE for row in rows)
        if self._has_warned_of_columns or not rows or not is_silent:
            return
        empty = empty_columns([step.rollouts[row].prompt for row in rows], self.traits.wanted_columns)
        if empty:
            self._has_warned_of_columns = True
            _LOGGER.warning(
                f"reward {self.name} applies to none of the {len(rows)} completions of this step, and their prompts "
                f"have nothing in {', '.join(empty)}, which it reads; add that to the data, or name the reward's "
                "tasks: (this is said once)"
            )

    def _ask(
        self, step: Step, rows: Sequence[int], log: StepLog, executor: Executor, found: dict[int, Outcome]
    ) -> None:
        """Add to ``found`` the outcomes of rows: shared out, then call by call."""
        units = _units(rows, step.group_ids if self.traits.needs_whole_groups else None)

        def score(process: RewardProcess, share: Sequence[tuple[int, ...]]) -> None:
            for chunk in _chunks(share, self.settings.batch_size):
                found.update(score_rows(process, chunk, step=step, timeout_s=self.settings.timeout_s, log=log))

        shares = [units[index :: len(self._processes)] for index in range(len(self._processes))]
        pairs = zip(self._processes, shares, strict=True)
        running = [executor.submit(score, process, share) for process, share in pairs if share]
        # A mistake in the reward's code comes first: an outage beside it may be no reason to stop.
        for future in sorted(running, key=lambda one: not isinstance(one.exception(), RewardContractError)):
            result_of(future, running)


def _is_hang(outcome: Outcome) -> bool:
    return outcome.status is RewardStatus.TIMEOUT and not outcome.is_from_reward


def _without_guess(outcome: Outcome) -> Outcome:
    """Return a hang of a reward that is out as no value: it is not the answer's fault, so its minimum is nobody's."""
    return replace(outcome, value=None) if _is_hang(outcome) else outcome


def result_of(future: Future[Any], siblings: Sequence[Future[Any]]) -> Any:
    """Return a future's result; if it failed, wait for its siblings first, so that no worker is left mid-message."""
    if future.exception() is not None:
        for sibling in siblings:
            sibling.exception()
    return future.result()


def _stand_ins(rows: Sequence[int], keys: Mapping[int, bytes | None]) -> dict[int, int]:
    """Return for each row the first row of its key, which is scored in its place."""
    first: dict[bytes, int] = {}
    found = {}
    for row in rows:
        key = keys.get(row)
        found[row] = row if key is None else first.setdefault(key, row)
    return found


def _units(rows: Sequence[int], group_ids: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Return rows in the parts that must stay together: one by one, or by group."""
    if group_ids is None:
        return [(row,) for row in rows]
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(int(group_ids[row]), []).append(row)
    return [tuple(group) for group in groups.values()]


def _chunks(units: Sequence[tuple[int, ...]], batch_size: int) -> list[list[tuple[int, ...]]]:
    """Return units in calls of at most ``batch_size`` rows; a larger group has a call of its own."""
    chunks: list[list[tuple[int, ...]]] = []
    num_rows = 0
    for unit in units:
        if not chunks or num_rows + len(unit) > batch_size:
            chunks.append([])
            num_rows = 0
        chunks[-1].append(unit)
        num_rows += len(unit)
    return chunks
