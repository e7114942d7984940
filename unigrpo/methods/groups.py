"""From the rewards of N rollouts to their advantages, group by group, on numpy.

The rule of a group (``Advantage``) sees its valid rewards alone. A group without spread gets 0, because the difference
of its rewards is rounding and not a preference: its standard deviation is below ``std_floor`` times what its largest
reward is made of (the sum of the magnitudes of its weighted parts, so that parts that cancel count as what they were).
The floor moves with the scale of the rewards, so one of 1e-4 teaches what one of 1 does. A table knows the rewards'
ranges, too: beside a range that reaches 1, values that differ by a few units of the last place of 1 are equal. NaN
means that a reward does not apply or failed: such a row gets advantage 0 and leaves its group. What counts of a reward
is its value clipped and gated (``RewardTable.counted``), and a reward of weight 0 counts nowhere.

Rows with fewer rewards. ``sum_then_normalize``: a row's total is the sum over the rewards that apply to it, so within a
group a row to which one does not apply is compared on a smaller sum (as in TRL); a row of which an optimised reward
*failed* has no total at all and gets advantage 0. ``normalize_then_sum``: each reward is centred over the rows that
have it, so a row without it gets 0 from it, neither better nor worse than its group.

``whiten`` divides the advantages by their standard deviation over the rows of the step that have any reward (GDPO's
last stage). Its mean is not subtracted: within each group it is 0 already, and what rounding leaves of it would give
groups without a preference one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.reward_table import RewardTable
from unigrpo.seeding import fold
from unigrpo.settings.learning import AdvantageChoice

if TYPE_CHECKING:
    from unigrpo.methods.advantages.base import Advantage

_STD_EPS = 1e-4
"""What whitening adds to the standard deviation, of which it takes at most the square."""
_ROUNDING = 16 * np.finfo(np.float64).eps
"""Share of the end of its range that a computed reward of 0 may miss 0 by, as 0.1 + 0.2 - 0.3 does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantages:
    """The advantages of N rollouts, and how many groups had nothing to tell."""

    values: np.ndarray
    """[N] float64."""
    frac_reward_zero_std: float
    """Fraction of the groups whose total reward has no spread, or under two valid rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """What is normalised within groups: the total, or one reward."""

    values: np.ndarray
    """[N] float64, NaN where there is none."""
    magnitude: np.ndarray
    """[N]: what the value is made of, all parts taken positive."""
    rounding: float
    """A standard deviation that is rounding, however small the values are."""
    weight: float

    def has_spread(self, rows: np.ndarray, std_floor: float) -> bool:
        """Return whether the values of a group's rows differ by more than rounding; one value does not."""
        rows = rows[~np.isnan(self.values[rows])]
        if len(rows) < 2:
            return False
        floor = max(std_floor * self.magnitude[rows].max(), self.rounding)
        return float(self.values[rows].std(ddof=1)) > floor

    def advantages(self, rows: np.ndarray, rule: Advantage, std_floor: float) -> np.ndarray:
        """Return the advantages of a group's rows, not yet weighted."""
        advantages = np.zeros(len(rows))
        if self.has_spread(rows, std_floor):
            is_valid = ~np.isnan(self.values[rows])
            valid = self.values[rows][is_valid]
            found = np.asarray(rule(valid))
            if found.shape != valid.shape or not np.isfinite(found).all():
                name = type(rule).__name__
                raise ValueError(f"{name} gave {found!r} for rewards {valid}; wanted a finite number for each")
            advantages[is_valid] = found
        return advantages


def _columns(rewards: RewardTable) -> list[_Column]:
    """Return every reward that is optimised as a column of its own."""
    counted, edges = rewards.counted, np.abs(rewards.bounds).max(axis=1, initial=0.0)
    return [
        _Column(
            values=counted[:, number],
            magnitude=np.abs(counted[:, number]),
            rounding=_ROUNDING * float(edges[number]),
            weight=float(rewards.weights[number]),
        )
        for number in np.flatnonzero(rewards.weights)
    ]


def _total(rewards: RewardTable | np.ndarray) -> _Column:
    """Return the weighted sum as a column."""
    if not isinstance(rewards, RewardTable):
        values = np.asarray(rewards, dtype=np.float64)
        return _Column(values=values, magnitude=np.abs(values), rounding=0.0, weight=1.0)
    parts = _columns(rewards)
    magnitude = sum((np.nan_to_num(part.magnitude) * abs(part.weight) for part in parts), np.zeros(len(rewards.total)))
    rounding = sum(part.rounding * abs(part.weight) for part in parts)
    return _Column(values=rewards.total, magnitude=magnitude, rounding=rounding, weight=1.0)


def spread_fractions(rewards: RewardTable, groups: Sequence[Sequence[int]], std_floor: float) -> dict[str, float]:
    """Return by optimised reward the fraction of the groups with a value of it in which it tells completions apart.

    A reward of 0 in all groups moves no advantage, whatever its weight; so does one that never applies.
    """
    names = [rewards.names[number] for number in np.flatnonzero(rewards.weights)]
    fractions = {}
    for name, column in zip(names, _columns(rewards), strict=True):
        rows = [np.asarray(group) for group in groups if not np.isnan(column.values[group]).all()]
        fractions[name] = sum(column.has_spread(group, std_floor) for group in rows) / max(1, len(rows))
    return fractions


def _whitened(values: np.ndarray, is_scored: np.ndarray) -> np.ndarray:
    """Return [N] values over their standard deviation among the scored rows, where these have one.

    What is added to it, against advantages that are nearly all 0, is small beside it at every scale.
    """
    scored = values[is_scored]
    if len(scored) < 2 or (std := float(scored.std(ddof=1))) == 0.0:
        return values
    return values / (std + min(_STD_EPS, std * std))


def group_advantages(
    rewards: RewardTable | np.ndarray,
    group_ids: Sequence[int] | np.ndarray,
    rule: Advantage,
    settings: AdvantageChoice,
    shuffle_seed: int | None = None,
) -> Advantages:
    """Return the advantages of N rollouts from the rewards of their groups.

    ``sum_then_normalize`` applies the rule to the weighted sum of the rewards; ``normalize_then_sum`` to each reward
    of non-zero weight, and then takes the weighted sum.

    Args:
        rewards: a table of N rows, or totals [N] with NaN where there is none.
        group_ids: [N], equal within a group; a group's rows need not be adjacent.
        rule: of one group.
        settings: what is done around it.
        shuffle_seed: keys the permutations of ``settings.shuffle_within_groups`` (run seed and step folded).

    Raises:
        ValueError: if the counts differ, a reward is infinite, or a shuffle has no seed.
    """
    total, ids = _total(rewards), np.asarray(group_ids)
    if total.values.ndim != 1 or ids.shape != total.values.shape:
        raise ValueError(
            f"rewards of shape {total.values.shape} and group ids of shape {ids.shape}; give one of each a rollout"
        )
    columns = [total]
    if settings.aggregate == "normalize_then_sum" and isinstance(rewards, RewardTable):
        columns = _columns(rewards)
    _check_finite(columns)
    if settings.shuffle_within_groups and shuffle_seed is None:
        raise ValueError("shuffle_within_groups needs a shuffle_seed; fold the run's seed and the step")
    values = np.zeros(len(total.values))
    num_flat = 0
    groups = np.unique(ids)
    for group in groups:
        rows = np.flatnonzero(ids == group)
        num_flat += not total.has_spread(rows, settings.std_floor)
        for column in columns:
            values[rows] += column.weight * column.advantages(rows, rule, settings.std_floor)
        if settings.shuffle_within_groups:
            rows = rows[~np.isnan(total.values[rows])]
            generator = np.random.default_rng(fold("shuffle", int(shuffle_seed or 0), int(group)))
            values[rows] = values[generator.permutation(rows)]
    if settings.whiten:
        counted = np.array([column.values for column in columns]).reshape(len(columns), len(values))
        has_any: np.ndarray = (~np.isnan(counted)).any(axis=0)
        values = _whitened(values, has_any)
    return Advantages(values=values, frac_reward_zero_std=num_flat / max(len(groups), 1))


def _check_finite(columns: Sequence[_Column]) -> None:
    for column in columns:
        if np.isinf(column.values).any():
            rows = np.flatnonzero(np.isinf(column.values)).tolist()
            raise ValueError(f"rollouts {rows} have an infinite reward; return None where a reward does not apply")
