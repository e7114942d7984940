import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.methods.advantages.leave_one_out import LeaveOneOut
from unigrpo.methods.advantages.mean import Mean
from unigrpo.methods.advantages.zscore import ZScore
from unigrpo.methods.groups import group_advantages
from unigrpo.reward_table import RewardTable
from unigrpo.settings.learning import AdvantageChoice

GOLDEN = np.load("tests/golden/losses/unigrpo_paper/inputs.npz")
EXPECTED = np.load("tests/golden/losses/unigrpo_paper/expected.npz")
NAN = float("nan")
RULES = {"mean": Mean(), "zscore": ZScore(), "leave_one_out": LeaveOneOut()}


def make_table(values, weights):
    values = np.array(values, dtype=np.float64)
    num_rewards = values.shape[1]
    return RewardTable(
        names=tuple(f"r{k}" for k in range(num_rewards)),
        values=values,
        status=np.zeros(values.shape, dtype=np.int8),
        weights=np.array(weights, dtype=np.float64),
        ranges=((0.0, 1.0),) * num_rewards,
    )


def slow_advantages(rewards, ids, mode):
    """Group by group in plain Python."""
    result = [0.0] * len(rewards)
    for group in set(ids):
        rows = [i for i in range(len(ids)) if ids[i] == group and not math.isnan(rewards[i])]
        if len(rows) < 2:
            continue
        mean = sum(rewards[i] for i in rows) / len(rows)
        std = math.sqrt(sum((rewards[i] - mean) ** 2 for i in rows) / (len(rows) - 1))
        if std < 1e-4:
            continue
        for i in rows:
            others = [rewards[j] for j in rows if j != i]
            result[i] = {
                "zscore": (rewards[i] - mean) / (std + 1e-4),
                "mean": rewards[i] - mean,
                "leave_one_out": rewards[i] - sum(others) / len(others),
            }[mode]
    return result


@pytest.mark.parametrize(("mode", "key"), [("mean", "advantages"), ("zscore", "advantages_zscore")])
def test_golden_advantages(mode, key):
    ids = np.arange(6) // int(GOLDEN["group_size"])
    result = group_advantages(GOLDEN["rewards"], ids, RULES[mode], AdvantageChoice())
    np.testing.assert_allclose(result.values, EXPECTED[key], atol=1e-12)


def test_hand_worked_group_of_three():
    result = group_advantages(np.array([2.0, 0.5, 0.5]), [0, 0, 0], LeaveOneOut(), AdvantageChoice())
    np.testing.assert_allclose(result.values, [1.5, -0.75, -0.75])


@pytest.mark.parametrize("mode", ["zscore", "mean", "leave_one_out"])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([NAN, 0.0, 0.1, 0.5, 1.0, -3.0])), min_size=1, max_size=14
    )
)
def test_equals_the_slow_loop_for_any_grouping(mode, rows):
    ids, rewards = [row[0] for row in rows], [row[1] for row in rows]
    result = group_advantages(np.array(rewards), ids, RULES[mode], AdvantageChoice())
    np.testing.assert_allclose(result.values, slow_advantages(rewards, ids, mode), atol=1e-12)


def test_group_without_spread_gets_zero_and_is_counted():
    result = group_advantages(np.array([0.1] * 8 + [0.0, 1.0]), [0] * 8 + [1] * 2, ZScore(), AdvantageChoice())
    assert (result.values[:8] == 0).all() and (result.values[8:] != 0).all()
    assert result.frac_reward_zero_std == 0.5


def test_row_without_reward_gets_zero_and_leaves_the_statistics():
    with_gap = group_advantages(np.array([1.0, NAN, 0.0, 0.0]), [0] * 4, ZScore(), AdvantageChoice()).values
    without = group_advantages(np.array([1.0, 0.0, 0.0]), [0] * 3, ZScore(), AdvantageChoice()).values
    assert with_gap[1] == 0
    np.testing.assert_array_equal(with_gap[[0, 2, 3]], without)


def test_single_valid_row_gets_zero():
    result = group_advantages(np.array([1.0, NAN, NAN]), [0] * 3, ZScore(), AdvantageChoice())
    assert (result.values == 0).all() and result.frac_reward_zero_std == 1.0


def test_sum_then_normalize_weighs_the_rewards_as_the_paper_does():
    table = make_table([[1, 1, NAN], [0, 1, 3.0], [0, 0, NAN]], [2.0, 0.5, 0.1])
    result = group_advantages(table, [0, 0, 0], Mean(), AdvantageChoice())
    totals = np.array([2.5, 0.8, 0.0])
    np.testing.assert_allclose(result.values, totals - totals.mean())


def test_normalize_then_sum_standardises_each_reward_first():
    table = make_table([[1, 30.0, 9], [0, 10.0, 7], [0, NAN, 5]], [1.0, 2.0, 0.0])
    settings = AdvantageChoice(aggregate="normalize_then_sum")
    first = slow_advantages([1.0, 0.0, 0.0], [0] * 3, "zscore")
    second = slow_advantages([30.0, 10.0, NAN], [0] * 3, "zscore")
    expected = [a + 2 * b for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(group_advantages(table, [0] * 3, ZScore(), settings).values, expected)


def test_shuffle_permutes_within_groups_and_is_keyed():
    rewards, ids = np.arange(24.0) ** 1.5, np.arange(24) // 8
    rewards[3] = NAN
    plain = group_advantages(rewards, ids, ZScore(), AdvantageChoice()).values
    settings = AdvantageChoice(shuffle_within_groups=True)
    one, again, other = (group_advantages(rewards, ids, ZScore(), settings, shuffle_seed=s).values for s in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and (one != plain).any() and one[3] == 0
    for group in range(3):
        np.testing.assert_array_equal(np.sort(one[ids == group]), np.sort(plain[ids == group]))


def test_global_generators_stay_as_they_were():
    states = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()
    group_advantages(np.arange(4.0), [0] * 4, ZScore(), AdvantageChoice(shuffle_within_groups=True), shuffle_seed=1)
    assert (np.random.get_state()[1] == states[0]).all() and torch.equal(torch.get_rng_state(), states[1])
    assert random.getstate() == states[2]


@pytest.mark.parametrize(
    ("rewards", "ids", "settings", "message"),
    [
        ([1.0, 2.0], [0], {}, "give one of each a rollout"),
        ([1.0, math.inf], [0, 0], {}, r"\[1\] have an infinite reward"),
        ([1.0, 2.0], [0, 0], {"shuffle_within_groups": True}, "needs a shuffle_seed"),
    ],
)
def test_wrong_arguments_are_named(rewards, ids, settings, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(np.array(rewards), ids, ZScore(), AdvantageChoice(**settings))
