"""Signs that a policy has learnt the reward instead of the task, step by step in the metric log.

Each alarm is ``alarm/<what>``, 0 or 1, with the numbers behind it as ``alarm/<what>/<number>``. They look at the last
20 steps, are 0 until there are as many, and change nothing about the run.

- ``alarm/held_out_falls``: an optimised reward rose while a held-out one (weight 0, ``watch: true``) of a task of its
  own fell. Both changes, second half of the window less first, exceed 3 standard errors. Numbers: ``rise`` and ``fall``
  of the pair that fell furthest in standard errors.
- ``alarm/saturation``: the reward of some task is within 2 % of its highest, or four of five groups have no spread:
  more steps teach nothing. Numbers: ``reward`` (of that task, in [0, 1]), ``zero_std`` (fraction of groups).
- ``alarm/duplicates``: more than half of some task's completions repeat another one of their group, to the letter or
  the pixel, and 0.25 more than in the first 20 steps. Groups at their highest reward do not count: agreeing on what is
  right is what was asked for. Number: ``fraction``.
- ``alarm/length_drift``: some task's completions are 1.5 times as long, or as short, as in the first 20 steps. Number:
  ``ratio``.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo.reward_table import RewardTable
from unigrpo.runs.nan_statistics import nan_mean
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Rollouts

WINDOW = 20
PREFIX = "alarm/"
_STANDARD_ERRORS = 3.0
_NEAR_HIGHEST = 0.98
_MOST_GROUPS = 0.8
_HALF = 0.5
_MORE_DUPLICATES = 0.25
_DRIFT = 1.5
_TOLERANCE = 1e-9

Record = Mapping[str, Any]


class Alarms:
    """The alarms of a run, which sees its steps in order."""

    def __init__(self, rewards: Mapping[str, RewardSettings], past: Iterable[Record] = ()) -> None:
        """Start with a recipe's rewards, or go on after the metric records of past steps."""
        self._rewards = dict(rewards)
        self._first: list[Record] = []
        self._last: deque[Record] = deque(maxlen=WINDOW)
        for record in past:
            self._take(record)

    def observe(self, record: Record) -> dict[str, float]:
        """Take in a step's metrics and return its alarms."""
        self._take(record)
        names = ("held_out_falls", "saturation", "duplicates", "length_drift")
        if len(self._last) < WINDOW:
            return {f"{PREFIX}{name}": 0.0 for name in names}
        found = (self._held_out_falls(), self._saturation(), self._duplicates(), self._length_drift())
        alarms: dict[str, float] = {}
        for name, (is_on, numbers) in zip(names, found, strict=True):
            alarms[f"{PREFIX}{name}"] = float(is_on)
            alarms |= {f"{PREFIX}{name}/{number}": value for number, value in numbers.items()}
        return alarms

    def _take(self, record: Record) -> None:
        if len(self._first) < WINDOW:
            self._first.append(record)
        self._last.append(record)

    def _held_out_falls(self) -> tuple[bool, dict[str, float]]:
        changes = {name: _change(_values(self._last, f"rewards/{name}/mean")) for name in self._rewards}
        found: list[tuple[float, float, float]] = []
        for name, optimized in self._rewards.items():
            rise, rise_errors = (math.copysign(1.0, optimized.weight) * part for part in changes[name])
            if optimized.weight == 0 or rise_errors <= _STANDARD_ERRORS:
                continue
            for other, held_out in self._rewards.items():
                fall, fall_errors = changes[other]
                is_held_out = held_out.weight == 0 and held_out.watch and _share_a_task(optimized, held_out)
                if is_held_out and fall_errors < -_STANDARD_ERRORS:
                    found.append((fall_errors, rise, fall))
        if not found:
            return False, {}
        _, rise, fall = min(found)
        return True, {"rise": rise, "fall": fall}

    def _saturation(self) -> tuple[bool, dict[str, float]]:
        reward = max(self._means(self._last, "reward").values(), default=math.nan)
        zero_std = nan_mean(_values(self._last, "frac_reward_zero_std"))
        return reward >= _NEAR_HIGHEST or zero_std >= _MOST_GROUPS, {"reward": reward, "zero_std": zero_std}

    def _duplicates(self) -> tuple[bool, dict[str, float]]:
        now, before = (self._means(records, "duplicate_fraction") for records in (self._last, self._first))
        is_on = any(now[task] > max(_HALF, before.get(task, 0.0) + _MORE_DUPLICATES) for task in now)
        return is_on, {"fraction": max(now.values(), default=math.nan)}

    def _length_drift(self) -> tuple[bool, dict[str, float]]:
        now, before = (self._means(records, "mean_length") for records in (self._last, self._first))
        ratios = [now[task] / before[task] for task in now if before.get(task, 0.0) > 0 and now[task] > 0]
        furthest = max(ratios, key=lambda ratio: abs(math.log(ratio)), default=1.0)
        return abs(math.log(furthest)) > math.log(_DRIFT), {"ratio": furthest}

    def _means(self, records: Iterable[Record], metric: str) -> dict[str, float]:
        """Return by task the mean of ``tasks/<task>/<metric>`` over the records that have it."""
        records = list(records)
        tasks = {name.split("/")[1] for record in records for name in record if name.startswith("tasks/")}
        means = {task: nan_mean(_values(records, f"tasks/{task}/{metric}")) for task in sorted(tasks)}
        return {task: mean for task, mean in means.items() if not math.isnan(mean)}


def completion_metrics(rollouts: Rollouts, table: RewardTable) -> dict[str, float]:
    """Return what the alarms need to know of a step besides its rewards.

    ``tasks/<task>/mean_length``: tokens. ``tasks/<task>/duplicate_fraction``: completions that equal an earlier one of
    their group, over the groups that are not wholly at their highest reward.
    """
    unit = table.unit_total
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    repeats: defaultdict[str, list[bool]] = defaultdict(list)
    for rows in rollouts.groups:
        group = [rollouts[row] for row in rows]
        task = group[0].prompt.task
        lengths[task].extend(rollout.completion_length for rollout in group)
        if not (unit[rows] >= 1.0 - _TOLERANCE).all():
            contents = [(one.text, b"" if one.image is None else one.image.tobytes()) for one in group]
            repeats[task].extend(content in contents[:index] for index, content in enumerate(contents))
    found = {f"tasks/{task}/mean_length": float(np.mean(counts)) for task, counts in lengths.items()}
    return found | {f"tasks/{task}/duplicate_fraction": float(np.mean(flags)) for task, flags in repeats.items()}


def _share_a_task(one: RewardSettings, other: RewardSettings) -> bool:
    return one.tasks is None or other.tasks is None or bool(set(one.tasks) & set(other.tasks))


def _values(records: Iterable[Record], name: str) -> list[float]:
    """Return the finite numbers under a name; records without one are left out."""
    values = [record.get(name) for record in records]
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _change(values: Sequence[float]) -> tuple[float, float]:
    """Return how much the second half exceeds the first, as it is and in standard errors; 0 where too few are known."""
    if len(values) < WINDOW:
        return 0.0, 0.0
    first, second = np.array(values[: len(values) // 2]), np.array(values[len(values) // 2 :])
    change = float(second.mean() - first.mean())
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    if error <= _TOLERANCE:
        return change, 0.0 if abs(change) <= _TOLERANCE else math.copysign(math.inf, change)
    return change, change / error


def alarms_of(record: Record) -> list[str]:
    """Return the names of the alarms that a metric record sets."""
    alarms = [name for name in record if name.startswith(PREFIX) and name.count("/") == 1]
    return [name.removeprefix(PREFIX) for name in alarms if record[name] == 1]
