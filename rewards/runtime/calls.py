"""The calls of a worker: some rows of a step go out as one call, and as several where one of them fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unigrpo.rewards.runtime.columns import columns_of
from unigrpo.rewards.runtime.digests import StepDigests
from unigrpo.rewards.runtime.isolation import IsolatedScoring, ItemError, Outcome, Reply, outcomes_of
from unigrpo.rewards.runtime.process import RewardProcess
from unigrpo.rewards.runtime.step_log import StepLog
from unigrpo.types import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step that all rewards score at once."""

    number: int
    rollouts: Sequence[Rollout]
    group_ids: Sequence[int]
    """Group of each of the N rollouts."""
    digests: StepDigests


def score_rows(
    process: RewardProcess, units: Sequence[tuple[int, ...]], *, step: Step, timeout_s: float, log: StepLog
) -> dict[int, Outcome]:
    """Return a reward's outcome of each row, in one call or several, or raise as :class:`IsolatedScoring` does.

    ``units`` are rows that must stay together; ``timeout_s`` is a call's.
    """
    traits = process.traits[log.name]
    rows = [row for unit in units for row in unit]
    columns = columns_of(
        [step.rollouts[row] for row in rows],
        wanted=traits.wanted_columns,
        with_completion_ids=traits.wants_completion_ids,
        group_ids=[step.group_ids[row] for row in rows] if traits.needs_whole_groups else None,
    )
    places = {row: place for place, row in enumerate(rows)}

    def call(asked: Sequence[int]) -> Reply:
        chosen = {name: [column[places[row]] for row in asked] for name, column in columns.items()}
        message = {"reward": log.name, "columns": chosen, "step": step.number}
        reply = outcomes_of(process.exchange(message, timeout_s=timeout_s))
        log.note_metrics(reply.metrics, len(asked))
        return reply

    def note_error(error: ItemError, num_items: int) -> None:
        log.errors.note(str(error), error.traceback, num_items)

    scoring = IsolatedScoring(
        call=call, name=log.name, minimum=traits.range[0], on_failure=log.note_failure, on_error=note_error
    )
    return scoring.score(units)
