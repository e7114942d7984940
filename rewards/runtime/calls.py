"""The calls of a worker: some rows of a step go out as one call, and as several where one of them fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unigrpo.rewards.runtime.columns import columns_of
from unigrpo.rewards.runtime.digests import StepDigests
from unigrpo.rewards.runtime.isolation import IsolatedScoring, Outcome, Reply, outcomes_of
from unigrpo.rewards.runtime.process import RewardProcess
from unigrpo.rewards.runtime.step_log import StepLog
from unigrpo.types import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step that all rewards score at once."""

    number: int
    rollouts: Sequence[Rollout]
    group_ids: Sequence[int]
    """[N]."""
    digests: StepDigests


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """The calls of one reward in one step."""

    reward: str
    step: Step
    timeout_s: float
    """Of a call."""
    log: StepLog

    def score(self, process: RewardProcess, units: Sequence[tuple[int, ...]]) -> dict[int, Outcome]:
        """Return the outcome of each row, or raise as :class:`IsolatedScoring` does.

        Args:
            process: that scores them.
            units: the rows, in the parts that must stay together.
        """
        traits = process.traits[self.reward]
        rows = [row for unit in units for row in unit]
        columns = columns_of(
            [self.step.rollouts[row] for row in rows],
            wanted=traits.wanted_columns,
            with_completion_ids=traits.wants_completion_ids,
            group_ids=[self.step.group_ids[row] for row in rows] if traits.needs_whole_groups else None,
        )
        places = {row: place for place, row in enumerate(rows)}

        def call(asked: Sequence[int]) -> Reply:
            chosen = {name: [column[places[row]] for row in asked] for name, column in columns.items()}
            message = {"reward": self.reward, "columns": chosen, "step": self.step.number}
            reply = outcomes_of(process.exchange(message, timeout_s=self.timeout_s))
            self.log.note_reply(asked, reply)
            return reply

        scoring = IsolatedScoring(
            call=call, name=self.reward, minimum=traits.range[0], on_failure=self.log.note_failure
        )
        return scoring.score(units)
