"""The child process of one or several rewards: it makes each once, then scores batches until its parent goes."""

from __future__ import annotations

import inspect
import logging
import math
import sys
import traceback
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.base import Failed, TimedOut
from unigrpo.rewards.process.adapt import AdaptedReward, RewardContractError, load_reward
from unigrpo.rewards.process.child import Send, limit_memory, serve, unlimit_memory
from unigrpo.rewards.process.pauses import reporting_pauses
from unigrpo.rewards.process.traits import identity, is_repeatable, needs_whole_groups
from unigrpo.sanitized import sanitized, sanitized_stream, short_repr

_NUM_TRACEBACK_CHARACTERS = 4000


class _Trap:
    """Holds whatever a reward's code raises, ``SystemExit`` and its like included: it must not end the worker."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> _Trap:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return True

    def report(self) -> dict[str, Any]:
        """Return what happened, as a reply."""
        assert self.error is not None
        trace = "".join(traceback.format_exception(self.error))
        return {
            "error": sanitized(f"{type(self.error).__name__}: {self.error}"),
            "traceback": sanitized(trace[-_NUM_TRACEBACK_CHARACTERS:]),
            "is_contract": isinstance(self.error, RewardContractError),
        }


FUNCTION_LIMIT_GB = 16.0
"""Address space of a function that says nothing: a rule that runs wild ends before the machine does."""


def _limit_gb(reward: AdaptedReward, wanted: float | None) -> float | None:
    """Return a reward's address space: the recipe's, else its own, else a function's; None is no limit."""
    own = getattr(reward.target, "memory_limit_gb", FUNCTION_LIMIT_GB if inspect.isroutine(reward.target) else None)
    limit = own if wanted is None else wanted
    return limit or None


class _Worker:
    """Answers ``{"load": …}`` once a reward and ``{"columns": …}`` for each batch of the reward that it names.

    A reward may have a ``warm_up``, a method of a class or an attribute of a function; it belongs to the loading, so no
    call's time counts it, and no answer pays for an import or a download that the first call would make.
    """

    def __init__(self) -> None:
        self._rewards: dict[str, AdaptedReward] = {}
        self._limits_gb: dict[str, float | None] = {}
        """Address space by reward; None is no limit."""

    def handle(self, message: dict[str, Any], send: Send) -> None:
        """Answer one message."""
        with _Trap() as trap, reporting_pauses(send if message.get("takes_pauses") else None):
            reply = self._load(message["load"]) if "load" in message else self._score(message)
        send(trap.report() if trap.error is not None else reply)

    def _load(self, order: dict[str, Any]) -> dict[str, Any]:
        folder = Path(order["folder"]) if order["folder"] else None
        reward = load_reward(order["use"], order["arguments"], name=order["name"], folder=folder)
        self._rewards[order["name"]] = reward
        self._limits_gb[order["name"]] = _limit_gb(reward, order.get("memory_limit_gb"))
        self._limit_memory()
        if callable(getattr(reward.target, "warm_up", None)):
            reward.target.warm_up()
        return {
            "range": list(reward.range),
            "wanted_columns": reward.wanted_columns,
            "wants_completion_ids": reward.wants_completion_ids,
            "needs_whole_groups": needs_whole_groups(reward),
            "is_repeatable": is_repeatable(reward),
            "identity": identity(reward),
        }

    def _limit_memory(self) -> None:
        """Limit the process to the largest limit of its rewards, where all have one: they share its memory."""
        known = [limit for limit in self._limits_gb.values() if limit is not None]
        if known and len(known) == len(self._limits_gb):
            limit_memory(max(known))
        elif known:
            unlimit_memory()

    def _score(self, message: dict[str, Any]) -> dict[str, Any]:
        if "unreadable" in message:
            raise ImportError(message["unreadable"])
        reward = self._rewards[message["reward"]] if "reward" in message else next(iter(self._rewards.values()))
        raw = reward.score(message["columns"], message["step"])
        values, status = judged(raw)
        metrics = {name: sum(logged) / len(logged) for name, logged in reward.metrics.items()}
        reasons = [_reason(value, code) for value, code in zip(raw, status, strict=True)]
        return {"values": values, "status": status, "reasons": reasons, "metrics": metrics}


def judged(raw: Sequence[Any]) -> tuple[list[float | None], list[int]]:
    """Return a reward's values as floats (None where there is no number) with the status of each."""
    values: list[float | None] = []
    status: list[int] = []
    for value in raw:
        if hasattr(value, "item"):
            value = _plain(value)
        if isinstance(value, TimedOut):
            found = RewardStatus.TIMEOUT
        elif isinstance(value, Real) and math.isfinite(value):
            found = RewardStatus.OK
        elif isinstance(value, Failed):
            found = RewardStatus.ERROR
        else:
            found = RewardStatus.NOT_APPLICABLE if value is None else RewardStatus.INVALID
        values.append(float(value) if found in (RewardStatus.OK, RewardStatus.TIMEOUT) else None)
        status.append(found)
    return values, status


def _reason(value: Any, status: int) -> str:
    """Return why there is no number, or not the reward's own; an invalid value is named with its type."""
    if status == RewardStatus.INVALID:
        return f"the value {short_repr(value)} ({type(value).__name__}) is not a finite number"
    return sanitized(value.reason) if isinstance(value, Failed | TimedOut) else ""


def _plain(value: Any) -> Any:
    """Return the number of an array or tensor of one; one of several is no number, and stays as it is.

    numpy's masked value is None, as it is in the list of an array that holds it; its own ``item()`` is 0.
    """
    mask = getattr(value, "mask", False)
    try:
        return None if not callable(mask) and bool(mask) else value.item()
    except (TypeError, ValueError, RuntimeError):
        return value


if __name__ == "__main__":
    sys.stdout, sys.stderr = sanitized_stream(sys.stdout), sanitized_stream(sys.stderr)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("unigrpo").setLevel(logging.INFO)
    serve(_Worker().handle, sys.argv[1:])
