"""The way to one worker of one reward: what waits there while a call runs goes out together in the next call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from unigrpo.rewards.runtime.columns import columns_of
from unigrpo.rewards.runtime.isolation import IsolatedScoring, Outcome, Reply
from unigrpo.rewards.runtime.step_log import StepLog
from unigrpo.rewards.runtime.worker_process import RewardWorker
from unigrpo.types import Rollout


@dataclass(kw_only=True, eq=False, slots=True)
class Request:
    """Some rows of a step that are to be scored in one call."""

    rollouts: Sequence[Rollout]
    """Of the whole step."""
    units: Sequence[tuple[int, ...]]
    """The rows, in the parts that must stay together."""
    group_ids: Sequence[int] | None
    """Of the whole step, for a reward that needs whole groups."""
    step: int
    log: StepLog
    outcomes: dict[int, Outcome] | None = None
    """By row, once scored."""

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return sum(map(len, self.units))


@dataclass(kw_only=True, eq=False, slots=True)
class Lane:
    """Several threads may ask at once. Whoever gets the worker's turn takes along what others have put in meanwhile."""

    worker: RewardWorker
    batch_size: int
    """Rows that a call holds at most, apart from a group that is larger."""
    _pending: list[Request] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def score(self, request: Request) -> dict[int, Outcome]:
        """Return the outcome of each row of a request, or raise as :class:`IsolatedScoring` does."""
        with self._guard:
            self._pending.append(request)
        with self._turn:
            if request.outcomes is None:
                self._run(request)
        assert request.outcomes is not None
        return request.outcomes

    def _run(self, request: Request) -> None:
        batch = self._take(request)
        try:
            _score(self.worker, batch)
        finally:
            with self._guard:  # Others whose rows failed together with this request's try on their own.
                self._pending += [other for other in batch if other is not request and other.outcomes is None]

    def _take(self, request: Request) -> list[Request]:
        """Return a request and what fits beside it; rows of one step only, which ``trainer_state`` is of."""
        with self._guard:
            self._pending.remove(request)
            batch, num_rows = [request], request.num_rows
            for other in list(self._pending):
                is_mergeable = other.step == request.step and other.group_ids is None and request.group_ids is None
                if is_mergeable and num_rows + other.num_rows <= self.batch_size:
                    self._pending.remove(other)
                    batch.append(other)
                    num_rows += other.num_rows
        return batch


def _score(worker: RewardWorker, batch: Sequence[Request]) -> None:
    """Score requests in one call, and fill in their outcomes."""
    entries = [(request, row) for request in batch for unit in request.units for row in unit]
    units, start = [], 0
    for request in batch:
        for unit in request.units:
            units.append(tuple(range(start, start + len(unit))))
            start += len(unit)
    group_ids = batch[0].group_ids
    columns = columns_of(
        [request.rollouts[row] for request, row in entries],
        wanted=worker.traits.wanted_columns,
        with_completion_ids=worker.traits.wants_completion_ids,
        group_ids=None if group_ids is None else [group_ids[row] for _, row in entries],
    )

    def call(items: Sequence[int]) -> Reply:
        chosen = {name: [column[item] for item in items] for name, column in columns.items()}
        reply = worker.call(chosen, batch[0].step)
        for request in batch:
            places = {entries[item][1]: place for place, item in enumerate(items) if entries[item][0] is request}
            request.log.note_reply(places, reply)
        return reply

    def note_failure(item: int, outcome: Outcome) -> None:
        request, row = entries[item]
        request.log.note_failure(row, outcome)

    scoring = IsolatedScoring(call=call, name=worker.name, minimum=worker.range[0], on_failure=note_failure)
    found = scoring.score(range(len(entries)), units=units)
    for request in batch:
        request.outcomes = {row: found[item] for item, (owner, row) in enumerate(entries) if owner is request}
