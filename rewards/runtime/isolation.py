"""Score a batch so that only the guilty item pays: a hang, a crash or an exception of one spares the others.

- A call over time: its worker is killed, and the items go one at a time; one that hangs alone is the answer's fault and
  gets the reward's minimum (TIMEOUT). One by one rather than by halves: each wrong guess costs a whole deadline. If
  the first few, taken from all over the batch, hang one and all, then the reward is down, and waiting on is useless.
- A worker that dies: the call is tried once more, then halved; an item whose worker died twice is an ERROR.
- ``Failed`` in place of a value: an ERROR of that item, and no second call.
- ``TimedOut`` in place of a value: a TIMEOUT of that item, and no second call.
- An exception: the batch is halved until the item that raises stands alone (ERROR).

Where a reward needs whole groups, a group stands for an item: it is never split, and all its rows share one failure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.errors import UserError
from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.rewards.process.child import ChildDiedError, ChildTimeoutError

_LOGGER = logging.getLogger(__name__)

_NUM_PROBES = 5

_Unit = tuple[int, ...]


class RewardOutageError(UserError):
    """So many items of a reward failed in one step that training on the rest would mislead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One reward of one completion."""

    value: float | None
    """None where there is no number."""
    status: RewardStatus
    reason: str = ""
    """Why it failed."""
    is_from_reward: bool = False
    """Whether the reward itself was up at a timeout, and put it down to the answer."""

    @property
    def is_failure(self) -> bool:
        """Return whether something went wrong, as opposed to: does not apply."""
        return self.status in (RewardStatus.INVALID, RewardStatus.ERROR, RewardStatus.TIMEOUT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a worker made of a batch."""

    outcomes: tuple[Outcome, ...]
    metrics: dict[str, float]


class ItemError(RuntimeError):
    """The reward's code raised; the message holds the exception, ``traceback`` where."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(kw_only=True, slots=True)
class IsolatedScoring:
    """The outcomes of a batch, gathered item by item."""

    call: Callable[[Sequence[int]], Reply]
    """One try at some items; raises ChildTimeoutError, ChildDiedError, ItemError or RewardContractError, see above."""
    name: str
    minimum: float
    on_failure: Callable[[int, Outcome], None]
    """Told of each failed item, so that the caller can stop when there are too many."""
    on_error: Callable[[ItemError, int], None] = lambda error, num_items: None
    """Told of each exception of a single item, or of one group, with its number of items."""

    def score(self, units: Sequence[_Unit]) -> dict[int, Outcome]:
        """Return the outcome of each item, called in the order given; the items of a unit stay together."""
        return self._attempt(list(units), is_retry=False)

    def _attempt(self, units: list[_Unit], *, is_retry: bool) -> dict[int, Outcome]:
        if not units:
            return {}
        items = [item for unit in units for item in unit]
        try:
            reply = self.call(items)
        except ChildTimeoutError as error:
            return self._after_timeout(units, str(error))
        except ChildDiedError as error:
            _LOGGER.warning("reward %s: %s while scoring %d items", self.name, error, len(items))
            if not is_retry:
                return self._attempt(units, is_retry=True)
            return self._split(units, RewardStatus.ERROR, str(error))
        except ItemError as error:
            if len(units) == 1:
                self.on_error(error, len(items))
            return self._split(units, RewardStatus.ERROR, str(error))
        return {item: self._noted(item, outcome) for item, outcome in zip(items, reply.outcomes, strict=True)}

    def _after_timeout(self, units: list[_Unit], reason: str) -> dict[int, Outcome]:
        _LOGGER.warning("reward %s: %s while scoring %d items", self.name, reason, sum(map(len, units)))
        if len(units) == 1:
            return self._failed(units[0], RewardStatus.TIMEOUT, reason)
        stride = max(1, len(units) // _NUM_PROBES)
        probes = units[::stride][:_NUM_PROBES]
        outcomes: dict[int, Outcome] = {}
        num_timeouts = 0
        rest = [unit for unit in units if unit not in set(probes)]
        for num_done, unit in enumerate([*probes, *rest], start=1):
            found = self._attempt([unit], is_retry=False)
            outcomes |= found
            num_timeouts += any(outcome.status is RewardStatus.TIMEOUT for outcome in found.values())
            if num_timeouts == num_done == _NUM_PROBES < len(units):
                raise RewardOutageError(
                    f"reward {self.name!r} gave no answer for {_NUM_PROBES} single items in a row out of {len(units)}: "
                    f"{reason}. It is down, or much slower than its timeout_s; what it imports or loads in its first "
                    "call belongs to the top of its file, its constructor or its warm_up"
                )
        if not num_timeouts:
            slow = "none of the %d items was slow alone; raise its timeout_s to save the retries"
            _LOGGER.warning(f"reward %s: {slow}", self.name, len(units))
        return outcomes

    def _split(self, units: list[_Unit], status: RewardStatus, reason: str) -> dict[int, Outcome]:
        if len(units) == 1:
            return self._failed(units[0], status, reason)
        halves = units[: len(units) // 2], units[len(units) // 2 :]
        # Deaths have repeated by now: only an item that stands alone is worth another try.
        first, second = (self._attempt(half, is_retry=len(half) > 1) for half in halves)
        return first | second

    def _failed(self, unit: _Unit, status: RewardStatus, reason: str) -> dict[int, Outcome]:
        value = self.minimum if status is RewardStatus.TIMEOUT else None
        return {item: self._noted(item, Outcome(value=value, status=status, reason=reason)) for item in unit}

    def _noted(self, item: int, outcome: Outcome) -> Outcome:
        if outcome.is_failure:
            self.on_failure(item, outcome)
        return outcome


def outcomes_of(reply: dict[str, Any]) -> Reply:
    """Return a worker's message as outcomes.

    Raises:
        ItemError: if the reward's code raised.
        RewardContractError: if it returned something that is not one value a completion.
    """
    if "error" in reply:
        if reply["is_contract"]:
            raise RewardContractError(reply["error"].partition(": ")[2])
        raise ItemError(reply["error"], reply["traceback"])
    outcomes = tuple(
        Outcome(value=value, status=RewardStatus(status), reason=reason, is_from_reward=status == RewardStatus.TIMEOUT)
        for value, status, reason in zip(reply["values"], reply["status"], reply["reasons"], strict=True)
    )
    return Reply(outcomes=outcomes, metrics=reply["metrics"])
