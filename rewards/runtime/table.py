"""The table of a step from the outcomes of its rewards, as the recipe's ``on_error`` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unigrpo.errors import UserError
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.runtime.isolation import Outcome
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Rollout

_SLACK = 1e-6
"""Share of a range within which a value beyond it is rounding."""


class RewardFailedError(UserError):
    """An item failed and the recipe says ``on_error: raise``."""


def table_of(
    settings: Mapping[str, RewardSettings],
    ranges: Sequence[tuple[float, float]],
    rollouts: Sequence[Rollout],
    group_ids: np.ndarray,
    outcomes: Mapping[str, Sequence[Outcome]],
) -> RewardTable:
    """Return the rewards of N rollouts.

    A reward of weight 0 is logged only: its failure drops no group, whatever its ``on_error``.

    Raises:
        RewardFailedError: for a failure where the recipe says so.
    """
    names = tuple(settings)
    shape = (len(rollouts), len(names))
    values, status = np.full(shape, np.nan), np.full(shape, RewardStatus.NOT_APPLICABLE, dtype=np.int8)
    is_dropped = np.zeros(len(rollouts), dtype=bool)
    for k, name in enumerate(names):
        reward = settings[name]
        for row, outcome in enumerate(outcomes[name]):
            status[row, k] = outcome.status
            values[row, k] = np.nan if outcome.value is None else outcome.value
            if outcome.status not in (RewardStatus.ERROR, RewardStatus.INVALID):
                continue
            if reward.on_error == "raise":
                raise RewardFailedError(
                    f"reward {name!r} failed on sample {rollouts[row].sample_index} of prompt "
                    f"{rollouts[row].prompt.id!r}: {outcome.reason}; on_error: mask would go on without it"
                )
            if reward.on_error == "value":
                values[row, k] = reward.error_value
            elif reward.on_error == "drop_group" and reward.weight != 0:
                is_dropped |= group_ids == group_ids[row]
    optimized = np.array([settings[name].weight != 0 for name in names])
    values[np.ix_(is_dropped, optimized)] = np.nan
    return RewardTable(
        names=names,
        values=values,
        status=status,
        weights=np.array([settings[name].weight for name in names], dtype=np.float64),
        ranges=tuple(ranges),
        clips=tuple(settings[name].clip for name in names),
        gates=tuple(tuple(names.index(gate) for gate in settings[name].gate) for name in names),
        pass_at=tuple(settings[name].pass_at for name in names),
    )


def ok_values(table: RewardTable, column: int) -> np.ndarray:
    """Return the values that a reward gave, without those of failures and those that were masked."""
    values = table.values[:, column]
    return values[(table.status[:, column] == RewardStatus.OK) & np.isfinite(values)]


def values_beyond(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Return the values outside of a range, by more than rounding."""
    low, high = bounds
    slack = _SLACK * (high - low)
    return values[(values < low - slack) | (values > high + slack)]


def groups_of(rollouts: Sequence[Rollout]) -> np.ndarray:
    """Return [N] int64, the number of each row's group: a run of rows of one prompt whose sample indices rise."""
    numbers, number = [], 0
    for previous, rollout in zip((None, *rollouts), rollouts, strict=False):
        if previous is not None and (
            (previous.prompt.task, previous.prompt.id) != (rollout.prompt.task, rollout.prompt.id)
            or rollout.sample_index <= previous.sample_index
        ):
            number += 1
        numbers.append(number)
    return np.array(numbers, dtype=np.int64)
