"""Signs that a policy has learnt the reward instead of the task, or nothing, step by step in the metric log.

Each alarm is ``alarm/<what>``, 0 or 1, with the numbers behind it as ``alarm/<what>/<number>`` and, where it is set,
``alarm/<what>/of``: the rewards or tasks that it is about, in words. `MEANING` says of each whether it is bad. They
look at the last 20 steps, are 0 until there are as many (``no_signal``, ``too_large`` and ``skipped_updates`` speak
sooner), and change nothing about the run.

- ``alarm/held_out_falls``: an optimised reward rose while a held-out one (weight 0, ``watch: true``) of a task of its
  own fell. Both changes, second half of the window less first, exceed 3 standard errors. Numbers: ``rise`` and ``fall``
  of the pair that fell furthest in standard errors.
- ``alarm/saturation``: the reward of some task is within 2 % of its highest, or four of five groups have no spread:
  more steps teach nothing. Numbers: ``reward`` (of that task, in [0, 1]), ``zero_std`` (fraction of groups).
- ``alarm/no_signal``: an optimised reward has told no two completions of a group apart in the last 5 steps or more: it
  is 0, or the same for all, or None, and has moved no advantage. Number: ``steps`` of the longest such silence.
- ``alarm/too_large``: a reward's value, or that times its weight, was too large to count and was masked. Number:
  ``rate``, the largest fraction of a reward's values.
- ``alarm/skipped_updates``: the step had updates without a finite gradient. Number: ``updates``.
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
from unigrpo.runs.course import Course, state_of
from unigrpo.runs.nan_statistics import nan_mean
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Rollouts

WINDOW = 20
SILENCE = 5
"""Steps without a difference after which a reward is called silent."""
PREFIX = "alarm/"
MEANING = {
    "held_out_falls": "bad: what is optimised is learnt at the cost of what is not",
    "saturation": "not a fault: there is little left to learn here",
    "no_signal": "bad, unless the reward is at its best: it has told no completions of a group apart, so nothing is "
    "learnt from it",
    "too_large": "bad: these values are masked; give the reward a clip, or a smaller weight",
    "skipped_updates": "bad if it lasts: the weights did not move at these updates",
    "duplicates": "bad: completions of a group grow alike, and there is less to choose from",
    "length_drift": "bad, unless it was asked for: completions change their length",
}
"""By alarm, whether it is bad and what it means."""
_STANDARD_ERRORS = 3.0
_NEAR_HIGHEST = 0.98
_MOST_GROUPS = 0.8
_HALF = 0.5
_MORE_DUPLICATES = 0.25
_DRIFT = 1.5
_TOLERANCE = 1e-9

Record = Mapping[str, Any]


Found = tuple[bool, str, dict[str, float]]
"""Whether an alarm is set, what it is about, and the numbers behind it."""


class Alarms:
    """The alarms of a run, which sees its steps in order."""

    def __init__(self, rewards: Mapping[str, RewardSettings], past: Iterable[Record] = ()) -> None:
        """Start with a recipe's rewards, or go on after the metric records of past steps."""
        self._rewards = dict(rewards)
        self._first: list[Record] = []
        self._last: deque[Record] = deque(maxlen=WINDOW)
        self._silent_steps = dict.fromkeys((name for name, reward in rewards.items() if reward.weight != 0), 0)
        self._course = Course(self._silent_steps)
        for record in past:
            self._take(record)
            self._course.take(record)

    def observe(self, record: Record) -> dict[str, Any]:
        """Take in a step's metrics and return its alarms."""
        self._take(record)
        ways = {
            "held_out_falls": self._held_out_falls,
            "saturation": self._saturation,
            "no_signal": self._no_signal,
            "too_large": self._too_large,
            "skipped_updates": self._skipped_updates,
            "duplicates": self._duplicates,
            "length_drift": self._length_drift,
        }
        alarms: dict[str, Any] = {}
        for name, find in ways.items():
            is_early = len(self._last) < WINDOW and name not in ("no_signal", "too_large", "skipped_updates")
            is_on, of, numbers = (False, "", dict[str, float]()) if is_early else find()
            alarms[f"{PREFIX}{name}"] = float(is_on)
            alarms |= {f"{PREFIX}{name}/{number}": value for number, value in numbers.items()}
            alarms |= {f"{PREFIX}{name}/of": of} if is_on else {}
        self._course.take({**record, **alarms})
        return alarms

    def course(self) -> Course:
        """Return what the steps so far amount to."""
        return self._course

    def _take(self, record: Record) -> None:
        if len(self._first) < WINDOW:
            self._first.append(record)
        self._last.append(record)
        for name in self._silent_steps:
            spread = record.get(f"reward/{name}/spread_fraction")
            if isinstance(spread, int | float):
                self._silent_steps[name] = 0 if spread > 0 else self._silent_steps[name] + 1

    def _held_out_falls(self) -> Found:
        changes = {name: _change(_values(self._last, f"rewards/{name}/mean")) for name in self._rewards}
        found: list[tuple[float, float, float, str]] = []
        for name, optimized in self._rewards.items():
            rise, rise_errors = (math.copysign(1.0, optimized.weight) * part for part in changes[name])
            if optimized.weight == 0 or rise_errors <= _STANDARD_ERRORS:
                continue
            for other, held_out in self._rewards.items():
                fall, fall_errors = changes[other]
                is_held_out = held_out.weight == 0 and held_out.watch and _share_a_task(optimized, held_out)
                if is_held_out and fall_errors < -_STANDARD_ERRORS:
                    found.append((fall_errors, rise, fall, f"{other} falls while {name} is optimised"))
        if not found:
            return False, "", {}
        _, rise, fall, of = min(found)
        return True, of, {"rise": rise, "fall": fall}

    def _saturation(self) -> Found:
        rewards = self._means(self._last, "reward")
        reward = max(rewards.values(), default=math.nan)
        zero_std = nan_mean(_values(self._last, "frac_reward_zero_std"))
        high = [f"task {task} {mean:.3f} of 1" for task, mean in rewards.items() if mean >= _NEAR_HIGHEST]
        flat = [f"{zero_std:.0%} of all groups without spread"] if zero_std >= _MOST_GROUPS else []
        parts = {name: nan_mean(_values(self._last, f"reward/{name}/mapped")) for name in self._silent_steps}
        full = [f"reward {name} {mean:.3f} of 1" for name, mean in parts.items() if mean >= _NEAR_HIGHEST]
        of = ", ".join([*high, *flat, *(full if high or flat else [])])
        return bool(high or flat), of, {"reward": reward, "zero_std": zero_std}

    def _no_signal(self) -> Found:
        silent = {name: steps for name, steps in self._silent_steps.items() if steps >= SILENCE}
        of = ", ".join(f"{name} ({self._state_of(name)}) for {steps} steps" for name, steps in silent.items())
        return bool(silent), of, {"steps": float(max(silent.values()))} if silent else {}

    def _state_of(self, name: str) -> str:
        return state_of(self._last[-1], name)

    def _too_large(self) -> Found:
        rates = {name: self._last[-1].get(f"reward/{name}/too_large_rate") or 0.0 for name in self._rewards}
        wrong = [name for name, rate in rates.items() if rate > 0]
        return bool(wrong), ", ".join(wrong), {"rate": max(rates.values())} if wrong else {}

    def _skipped_updates(self) -> Found:
        count = self._last[-1].get("num_skipped_updates") or 0
        cause = f"{self._last[-1].get('skipped_updates/cause', 'the gradient is')} not finite"
        return count > 0, cause, {"updates": float(count)} if count else {}

    def _duplicates(self) -> Found:
        now, before = (self._means(records, "duplicate_fraction") for records in (self._last, self._first))
        more = [task for task in now if now[task] > max(_HALF, before.get(task, 0.0) + _MORE_DUPLICATES)]
        of = ", ".join(f"task {task} {now[task]:.0%}" for task in more)
        return bool(more), of, {"fraction": max(now.values(), default=math.nan)}

    def _length_drift(self) -> Found:
        now, before = (self._means(records, "mean_length") for records in (self._last, self._first))
        ratios = {task: now[task] / before[task] for task in now if before.get(task, 0.0) > 0 and now[task] > 0}
        furthest = max(ratios.values(), key=lambda ratio: abs(math.log(ratio)), default=1.0)
        far = [task for task, ratio in ratios.items() if abs(math.log(ratio)) > math.log(_DRIFT)]
        of = ", ".join(f"task {task} {ratios[task]:.2g} times as long as at first" for task in far)
        return bool(far), of, {"ratio": furthest}

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
    rounding = _TOLERANCE * max(map(abs, values))
    if error <= rounding:
        return change, 0.0 if abs(change) <= rounding else math.copysign(math.inf, change)
    return change, change / error


def alarms_of(record: Record) -> list[str]:
    """Return the names of the alarms that a metric record sets."""
    alarms = [name for name in record if name.startswith(PREFIX) and name.count("/") == 1]
    return [name.removeprefix(PREFIX) for name in alarms if record[name] == 1]


def about(record: Record, name: str) -> str:
    """Return what an alarm that a record sets is about: rewards or tasks by name; nothing where nobody has said."""
    return str(record.get(f"{PREFIX}{name}/of") or "")
