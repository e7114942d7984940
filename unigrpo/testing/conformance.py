"""Does a class of yours keep its contract? Call these from your own tests; each raises with what was broken.

`check_policy` and `check_sampler` need torch, which is imported when one of them is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.errors import ConformanceError
from unigrpo.rewards.base import Failed
from unigrpo.rewards.process.adapt import AdaptedReward

if TYPE_CHECKING:
    from unigrpo.testing.policy_checks import check_policy, check_sampler


__all__ = ["ConformanceError", "check_policy", "check_reward", "check_sampler"]


def __getattr__(name: str) -> Any:
    """Import a check of policies when it is first asked for."""
    if name in ("check_policy", "check_sampler"):
        from unigrpo.testing import policy_checks

        return getattr(policy_checks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def check_reward(
    reward: Callable[..., Any],
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tolerance: float = 1e-5,
    **columns: Sequence[Any],
) -> list[float | None]:
    """Check a reward on examples of yours and return its values for them.

    It must give one finite number or None a completion, within its range; the same on a second call; values that
    move with their completions when the batch is shuffled or split; nothing for an empty batch; and it must take
    columns that it does not know.

    Args:
        reward: a function, or an instance of a class, that takes completions and columns by name.
        prompts: at least two, so that order can be checked.
        completions: one a prompt.
        tolerance: by which values may differ between batches of different make-up.
        **columns: the data's columns, one value a prompt.

    Raises:
        ConformanceError: for the first rule that is broken.
        RewardContractError: if the reward does not return one value a completion.
    """
    count = len(completions)
    if count < 2 or len(prompts) != count:
        raise ConformanceError(
            f"{len(prompts)} prompts and {count} completions do not make a check; give at least two of each"
        )
    adapted = AdaptedReward(reward, name=getattr(reward, "__name__", type(reward).__name__))
    batch: dict[str, Sequence[Any]] = {"prompts": prompts, "completions": completions, **columns}
    values = _called(adapted, batch, range(count))
    _check_values(adapted, values)
    _check_equal("a second call", values, _called(adapted, batch, range(count)), tolerance)
    order = np.random.default_rng(0).permutation(count).tolist()
    shuffled = _called(adapted, batch, order)
    _check_equal("a shuffled batch", [values[index] for index in order], shuffled, tolerance)
    single = [_called(adapted, batch, [index])[0] for index in range(count)]
    _check_equal("batches of one", values, single, tolerance)
    if _called(adapted, batch, []) != []:
        raise ConformanceError(f"{adapted.name}: an empty batch must give an empty list")
    _check_equal(
        "an unknown column", values, _called(adapted, batch | {"unknown": [0] * count}, range(count)), tolerance
    )
    return values


def _called(reward: AdaptedReward, batch: Mapping[str, Sequence[Any]], items: Sequence[int]) -> list[Any]:
    return reward(**{name: [column[index] for index in items] for name, column in batch.items()})  # type: ignore[arg-type]


def _check_values(reward: AdaptedReward, values: Sequence[Any]) -> None:
    low, high = reward.range
    for index, value in enumerate(values):
        if value is None or isinstance(value, Failed):
            continue
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ConformanceError(f"{reward.name}: value {index} is {value!r}; give a finite number, None or Failed")
        if not low <= float(value) <= high:
            raise ConformanceError(
                f"{reward.name}: value {index} is {float(value):g}, outside its range ({low:g}, {high:g}); "
                "set the class's `range` to what it can give"
            )


def _check_equal(occasion: str, wanted: Sequence[Any], given: Sequence[Any], tolerance: float) -> None:
    for index, (first, second) in enumerate(zip(wanted, given, strict=True)):
        are_numbers = isinstance(first, Real) and isinstance(second, Real)
        is_same = abs(first - second) <= tolerance if are_numbers else first == second
        if not is_same:
            raise ConformanceError(f"{occasion} changes a value: item {index} was {first}, then {second}")
