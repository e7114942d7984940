"""From the rewards of N rollouts to their advantages, group by group, on numpy.

The rule of a group (``Advantage``) sees its valid rewards alone. A group whose standard deviation is below
``std_floor`` gets 0, because the difference of its rewards is rounding and not a preference. NaN means that a reward
does not apply or failed: such a row gets advantage 0 and leaves its group. What counts of a reward is its value clipped
and gated (``RewardTable.counted``), and a reward of weight 0 counts nowhere.

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
"""What whitening adds to the standard deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantages:
    """The advantages of N rollouts, and how many groups had nothing to tell."""

    values: np.ndarray
    """[N] float64."""
    frac_reward_zero_std: float
    """Fraction of the groups whose total reward has a standard deviation below the floor, or under two valid rows."""


def _of_group(rewards: np.ndarray, rule: Advantage, std_floor: float) -> tuple[np.ndarray, bool]:
    """Return the advantages [G] of one group, and whether it has no spread."""
    advantages = np.zeros(len(rewards))
    is_valid = ~np.isnan(rewards)
    valid = rewards[is_valid]
    if len(valid) < 2 or valid.std(ddof=1) < std_floor:
        return advantages, True
    found = np.asarray(rule(valid))
    if found.shape != valid.shape or not np.isfinite(found).all():
        raise ValueError(f"{type(rule).__name__} gave {found!r} for rewards {valid}; wanted a finite number for each")
    advantages[is_valid] = found
    return advantages, False


def _columns(rewards: RewardTable | np.ndarray, settings: AdvantageChoice) -> tuple[np.ndarray, np.ndarray]:
    """Return what is normalised, [N, K'], and the weight of each column, [K']."""
    if settings.aggregate == "sum_then_normalize" or not isinstance(rewards, RewardTable):
        return _total(rewards)[:, None], np.ones(1)
    is_used = rewards.weights != 0
    return rewards.counted[:, is_used], rewards.weights[is_used]


def _total(rewards: RewardTable | np.ndarray) -> np.ndarray:
    return np.asarray(rewards.total if isinstance(rewards, RewardTable) else rewards, dtype=np.float64)


def _whitened(values: np.ndarray, is_scored: np.ndarray, std_floor: float) -> np.ndarray:
    """Return [N] values over their standard deviation among the scored rows, unless that is below the floor."""
    scored = values[is_scored]
    if len(scored) < 2 or (std := scored.std(ddof=1)) < std_floor:
        return values
    return values / (std + _STD_EPS)


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
    if total.ndim != 1 or ids.shape != total.shape:
        raise ValueError(
            f"rewards of shape {total.shape} and group ids of shape {ids.shape}; give one of each a rollout"
        )
    columns, weights = _columns(rewards, settings)
    if np.isinf(columns).any():
        rows = np.flatnonzero(np.isinf(columns).any(axis=1))
        raise ValueError(f"rollouts {rows.tolist()} have an infinite reward; return None where a reward does not apply")
    if settings.shuffle_within_groups and shuffle_seed is None:
        raise ValueError("shuffle_within_groups needs a shuffle_seed; fold the run's seed and the step")
    values = np.zeros(len(total))
    num_flat = 0
    groups = np.unique(ids)
    for group in groups:
        rows = np.flatnonzero(ids == group)
        num_flat += _of_group(total[rows], rule, settings.std_floor)[1]
        for column, weight in zip(columns.T, weights, strict=True):
            values[rows] += weight * _of_group(column[rows], rule, settings.std_floor)[0]
        if settings.shuffle_within_groups:
            rows = rows[~np.isnan(total[rows])]
            generator = np.random.default_rng(fold("shuffle", int(shuffle_seed or 0), int(group)))
            values[rows] = values[generator.permutation(rows)]
    if settings.whiten:
        values = _whitened(values, ~np.isnan(columns).all(axis=1), settings.std_floor)
    return Advantages(values=values, frac_reward_zero_std=num_flat / max(len(groups), 1))
