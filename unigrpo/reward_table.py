"""The rewards of a step: what each gave, what of it counts, and which completions pass.

Letters as in `unigrpo.types`. Importing this module imports the standard library alone: a reward's worker, which
reports a `RewardStatus`, may run where there is nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_TOLERANCE = 1e-9
"""How far below its threshold a value still passes, as a share of its range: a sum of parts may miss its highest value
by rounding."""
MAX_MAGNITUDE = 1e30
"""A value, or a value times its weight, beyond it is masked: losses are float32, whose largest number is 3e38."""


class RewardStatus(IntEnum):
    """What became of one reward of one rollout."""

    OK = 0
    NOT_APPLICABLE = 1
    INVALID = 2
    ERROR = 3
    TIMEOUT = 4


@dataclass(frozen=True, kw_only=True)
class RewardTable:
    """The rewards of N rollouts under K names.

    What follows from the fields is derived at first use and kept, as read-only arrays. Derived values live in the
    record's ``__dict__``, so it is frozen but not slotted; nobody may write into ``values`` or ``status`` either.
    """

    names: tuple[str, ...]
    values: np.ndarray
    """[N, K] float64; NaN where a reward does not apply or is masked."""
    status: np.ndarray
    """[N, K] int8 of RewardStatus."""
    weights: np.ndarray
    """[K] float64; 0 is logged only."""
    ranges: tuple[tuple[float, float], ...]
    """[K] lowest and highest value of each reward."""
    clips: tuple[tuple[float, float] | None, ...] = ()
    """[K] bounds beyond which a value counts as the bound; empty is none for any."""
    gates: tuple[tuple[int, ...], ...] = ()
    """[K] columns that must pass for this one to count; empty is none for any."""
    pass_at: tuple[float | None, ...] = ()
    """[K] value from which a completion passes a reward; None is the highest that counts; empty is None for all."""

    @cached_property
    def bounds(self) -> np.ndarray:
        """Return [K, 2]: lowest and highest value that counts."""
        import numpy as np

        bounds = np.array(self.ranges, dtype=np.float64).reshape(-1, 2)
        for column, clip in enumerate(self.clips):
            if clip is not None:
                bounds[column] = np.clip(bounds[column], *clip)
        return _read_only(bounds)

    @cached_property
    def _clipped(self) -> np.ndarray:
        """Return [N, K]: the values within their clips."""
        import numpy as np

        clipped = self.values.copy()
        for column, clip in enumerate(self.clips):
            if clip is not None:
                clipped[:, column] = np.clip(clipped[:, column], *clip)
        return _read_only(clipped)

    @cached_property
    def is_too_large(self) -> np.ndarray:
        """Return [N, K] bool: values that are masked because they, or they times their weight, pass `MAX_MAGNITUDE`."""
        import numpy as np

        with np.errstate(over="ignore"):
            largest = np.abs(self._clipped) * np.maximum(np.abs(self.weights), 1.0)
        return _read_only(largest > MAX_MAGNITUDE)

    @cached_property
    def counted(self) -> np.ndarray:
        """Return [N, K]: the values that count, clipped and gated; NaN where a value is too large to count.

        A gated value counts where each of its gates that applies to the row is passed; where one is not, it is the
        worst that it can be (the lowest; the highest for a negative weight). Where a gate has failed, nobody knows
        whether it is passed, and the value is masked. A gate that does not apply to the row, or returned None, is not
        in its way. A gate may itself have gates.
        """
        import numpy as np

        counted = np.where(self.is_too_large, np.nan, self._clipped)
        pending = {column: gates for column, gates in enumerate(self.gates) if gates}
        while pending:
            ready = [column for column, gates in pending.items() if not set(gates).intersection(pending)]
            assert ready, "gates that wait for each other"
            for column in ready:
                for gate in pending.pop(column):
                    self._shut(counted, column, gate)
        return _read_only(counted)

    def _shut(self, counted: np.ndarray, column: int, gate: int) -> None:
        """Apply one gate to a column of ``counted``."""
        import numpy as np

        worst = self.bounds[column, 0 if self.weights[column] >= 0 else 1]
        has_value = ~np.isnan(counted[:, gate])
        is_unknown = ~has_value & (self.status[:, gate] != RewardStatus.NOT_APPLICABLE)
        is_shut = has_value & ~(counted[:, gate] >= self._thresholds[gate])
        counted[is_unknown, column] = np.nan
        counted[is_shut & ~np.isnan(counted[:, column]), column] = worst

    @cached_property
    def _thresholds(self) -> np.ndarray:
        """Return [K]: the least counted value that passes, rounding allowed for."""
        import numpy as np

        given = self.pass_at or (None,) * len(self.names)
        highest = self.bounds[:, 1]
        wanted = [top if value is None else value for value, top in zip(given, highest, strict=True)]
        return _read_only(np.array(wanted, dtype=np.float64) - _TOLERANCE * (highest - self.bounds[:, 0]))

    @cached_property
    def is_passed(self) -> np.ndarray:
        """Return [N, K] bool: whether the counted value reaches ``pass_at``, or without it the highest that counts.

        This is the one rule of what is right: of gates, of the accuracy, and of what samples and reports show. It is
        False where nothing counts (``counted`` is NaN: the reward does not apply, or is masked); who must tell that
        apart takes ``passed_of`` or looks at ``counted``. The sign of a weight plays no part in it.
        """
        return _read_only(self.counted >= self._thresholds)

    @cached_property
    def is_comparable(self) -> np.ndarray:
        """Return [N]: whether no optimised reward of the row failed, or is too large, and was masked.

        The sum over the rest is no reward of such a row: it lacks a part that its group has for no fault of the answer.
        """
        import numpy as np

        is_failed = np.isin(self.status, (RewardStatus.INVALID, RewardStatus.ERROR, RewardStatus.TIMEOUT))
        is_behind_a_failed_gate = ~np.isnan(self.values)
        is_lost = np.isnan(self.counted) & (is_failed | is_behind_a_failed_gate)
        return _read_only(~(is_lost & (self.weights != 0)).any(axis=1))

    @cached_property
    def total(self) -> np.ndarray:
        """Return [N]: the weighted sum over the rewards that apply; NaN where none does, or an optimised one failed.

        As in TRL, a row to which fewer rewards apply has a sum of fewer terms: rewards that do not apply to all rows of
        a group shift the rows that they miss. ``unit_total`` divides by the weights that apply.
        """
        import numpy as np

        counted = self.counted
        weighted = np.where(np.isnan(counted), 0.0, counted) * self.weights
        is_any = (~np.isnan(counted) & (self.weights != 0)).any(axis=1)
        return _read_only(np.where(is_any & self.is_comparable, weighted.sum(axis=1), np.nan))

    @cached_property
    def mapped(self) -> np.ndarray:
        """Return [N, K]: what counts of each reward, mapped from its range to [0, 1]; 1 is what is wanted most.

        A reward of negative weight counts from its highest value down.
        """
        import numpy as np

        low, high = self.bounds.T
        unit = (self.counted - low) / (high - low)
        return _read_only(np.where(self.weights < 0, 1.0 - unit, unit))

    @cached_property
    def unit_total(self) -> np.ndarray:
        """Return [N] in [0, 1]: the weighted mean of the applying rewards, each mapped from its range to [0, 1].

        NaN where ``total`` is, and there alone. It is for people and plots: training adds value times weight
        (``total``), which weighs a wide range more, so that the two may order completions otherwise (`disagreement`).
        """
        import numpy as np

        unit = self.mapped
        weight = np.where(np.isnan(unit), 0.0, np.abs(self.weights))
        denominator = weight.sum(axis=1)
        mean = (np.nan_to_num(unit) * weight).sum(axis=1) / np.where(denominator > 0, denominator, 1.0)
        return _read_only(np.where((denominator > 0) & self.is_comparable, mean, np.nan))

    def values_of(self, row: int) -> dict[str, float | None]:
        """Return what each reward gave one rollout, by name; None where it does not apply or is masked."""
        pairs = zip(self.names, self.values[row].tolist(), strict=True)
        return {name: None if value != value else value for name, value in pairs}

    def passed_of(self, row: int) -> dict[str, bool | None]:
        """Return whether one rollout passes each reward, by name; None where nothing counts."""
        pairs = zip(self.names, self.counted[row].tolist(), self.is_passed[row].tolist(), strict=True)
        return {name: None if counted != counted else passed for name, counted, passed in pairs}


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Where two measures order completions otherwise: the sum that is optimised, and the mean mapped to [0, 1]."""

    num_rows: int
    """Completions with a smaller sum than another one, and a larger mapped reward."""
    better: int
    """Of the pair that is furthest apart in the mapped reward: the row with the larger sum."""
    worse: int
    """The row of that pair with the smaller sum, whose mapped reward is the larger."""


def disagreement(optimized: np.ndarray, mapped: np.ndarray) -> Disagreement | None:
    """Return where ``total`` and ``unit_total`` order rows otherwise; None where they do not.

    They do where rewards have ranges of different widths: training adds value times weight, so that a wide range counts
    for more; the mapped reward gives each reward its weight whatever its range. Rows without a value are left out.

    Args:
        optimized: [N], the weighted sums.
        mapped: [N] in [0, 1].
    """
    import numpy as np

    rows = np.flatnonzero(~np.isnan(optimized) & ~np.isnan(mapped))
    if not len(rows):
        return None
    rows = rows[np.lexsort((mapped[rows], optimized[rows]))]
    slack = 1e-9 * np.abs(optimized[rows]).max()
    found: list[tuple[float, int, int]] = []
    wrong = 0
    lowest, least = np.inf, -1  # of the rows with a larger sum
    pending: list[int] = []  # rows whose sum equals the last one's but for rounding
    for row in rows[::-1].tolist():
        while pending and optimized[pending[0]] - optimized[row] > slack:
            first = pending.pop(0)
            if mapped[first] < lowest:
                lowest, least = float(mapped[first]), first
        if mapped[row] > lowest + _TOLERANCE:
            wrong += 1
            found.append((float(mapped[row]) - lowest, least, row))
        pending.append(row)
    if not found:
        return None
    _, better, worse = max(found)
    return Disagreement(num_rows=wrong, better=better, worse=worse)


def _read_only(derived: np.ndarray) -> np.ndarray:
    derived.flags.writeable = False
    return derived
