"""What the steps of a run amount to: which rewards taught, which never did, and what must be said when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOTHING_LEARNT = "finished, nothing learnt"
"""Status of a run that ended, and none of whose updates had an advantage or moved the weights."""


_LOST = {"error_rate": "failed", "timeout_rate": "timed out"}
"""By metric of a reward, what became of that part of its values."""


def state_of(record: Mapping[str, Any], name: str) -> str:
    """Return in words what a reward gave in a step: no value, or its mean, whether that is its best, and what was lost.

    A mean in which values stand that are masked for their size says nothing, and is left out.
    """
    if rate := record.get(f"reward/{name}/too_large_rate"):
        return f"{rate:.0%} of its values masked, too large to count"
    mean, mapped = record.get(f"rewards/{name}/mean"), record.get(f"reward/{name}/mapped")
    is_known = isinstance(mean, int | float) and mean == mean
    is_best = is_known and isinstance(mapped, int | float) and mapped >= 1 - 1e-9
    parts = [f"{mean:g}" if is_known else "no value", *(["its best"] if is_best else [])]
    rates = {said: record.get(f"reward/{name}/{metric}") for metric, said in _LOST.items()}
    return ", ".join([*parts, *(f"{rate:.0%} {said}" for said, rate in rates.items() if rate)])


class Course:
    """Counts over all steps of a run, those before it was resumed included."""

    def __init__(self, optimized: Iterable[str]) -> None:
        """Start with the names of the rewards that are optimised."""
        self._num_steps = self._num_taught = self._num_skipped = 0
        self._cause = ""
        self._is_silent = dict.fromkeys(optimized, True)
        self._states: dict[str, str] = {}
        self._alarms: dict[str, dict[str, Any]] = {}
        self._misordered: dict[str, float] = {}
        """The last step's fraction by task, where it is not 0."""

    def take(self, record: Mapping[str, Any]) -> None:
        """Take in a step's metrics with its alarms."""
        self._num_steps += 1
        num_skipped = int(record.get("num_skipped_updates") or 0)
        self._num_skipped += num_skipped
        self._cause = str(record.get("skipped_updates/cause") or self._cause)
        self._num_taught += (record.get("advantages/abs_mean") != 0) and num_skipped < record.get("num_updates", 1)
        for name in self._is_silent:
            self._is_silent[name] &= record.get(f"reward/{name}/spread_fraction") == 0
            self._states[name] = state_of(record, name)
        self._misordered = {
            key.split("/")[1]: float(value)
            for key, value in record.items()
            if key.startswith("tasks/") and key.endswith("/misordered_fraction") and value
        }
        for key, value in record.items():
            what, _, more = key.removeprefix("alarm/").partition("/")
            if key.startswith("alarm/") and not more and value == 1:
                seen = self._alarms.setdefault(what, {"steps": 0})
                seen["steps"] += 1
                seen |= {"last": int(record["step"]), "of": str(record.get(f"{key}/of") or "")}

    @property
    def status(self) -> str:
        """Return how the run has ended: ``finished``, or that without having learnt anything."""
        return NOTHING_LEARNT if self._num_steps and not self._num_taught else "finished"

    @property
    def alarms(self) -> dict[str, dict[str, Any]]:
        """Return by alarm that was set: ``steps`` (how many), ``last`` (of them) and ``of`` (what it named)."""
        return {name: dict(seen) for name, seen in self._alarms.items()}

    def notes(self) -> list[str]:
        """Return, a sentence each, what a bare "finished" would hide."""
        notes = []
        if self.status == NOTHING_LEARNT:
            notes.append(f"nothing was learnt: no advantage has moved the weights in any of {self._num_steps} steps")
        for name, is_silent in self._is_silent.items():
            if is_silent and self._num_steps:
                notes.append(
                    f"nothing was learnt from the reward {name}: in none of {self._num_steps} steps did it tell two "
                    f"completions of a group apart (at last {self._states[name]})"
                )
        if self._num_skipped:
            notes.append(f"{self._num_skipped} updates were skipped, the last because {self._cause} not finite")
        for task, fraction in self._misordered.items():
            notes.append(
                f"task {task}: the reward mapped to [0, 1] orders {fraction:.0%} of the last step's completions "
                "otherwise than the sum of value times weight that is optimised: its rewards' ranges differ in width"
            )
        if "too_large" in self._alarms:
            notes.append(f"values too large to count were masked, of {self._alarms['too_large']['of']}")
        return notes


def order_note(task: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return a sentence where a task's mapped reward and its optimised sum moved in opposite directions, else nothing.

    ``before`` and ``after`` are evaluations, ``eval/<task>/reward`` and ``eval/<task>/optimized``.
    """
    names = f"eval/{task}/optimized", f"eval/{task}/reward"
    values = [metrics.get(name) for name in names for metrics in (before, after)]
    if not all(isinstance(value, int | float) and value == value for value in values):
        return ""
    low, high, mapped_low, mapped_high = (float(value or 0.0) for value in values)
    if (high - low) * (mapped_high - mapped_low) >= 0:
        return ""
    return (
        f"task {task}: the sum that is optimised went from {low:.4g} to {high:.4g}, the reward mapped to [0, 1] from "
        f"{mapped_low:.3f} to {mapped_high:.3f}; the ranges of its rewards differ in width, and the sum weighs a wide "
        "one more"
    )
