"""What rewards teach whatever their scale, and what is masked, bounded and said where they teach nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.methods.advantages.leave_one_out import LeaveOneOut
from unigrpo.methods.advantages.mean import Mean
from unigrpo.methods.advantages.zscore import ZScore
from unigrpo.methods.groups import group_advantages, spread_fractions
from unigrpo.reward_table import RewardTable, disagreement
from unigrpo.settings.learning import AdvantageChoice

NAN = float("nan")
SCALES = [1e-12, 1e-4, 1e-2, 1.0, 1e2, 1e6]
REWARDS = np.array([0.0, 0.25, 0.5, 1.0, 1.0, 0.0, 0.75, 0.25])
IDS = [0, 0, 0, 0, 1, 1, 1, 1]


def table(values, weights, ranges=None, **fields):
    values = np.array(values, dtype=np.float64)
    count = values.shape[1]
    return RewardTable(
        names=tuple(f"r{number}" for number in range(count)),
        values=values,
        status=np.zeros(values.shape, dtype=np.int8),
        weights=np.array(weights, dtype=np.float64),
        ranges=tuple(ranges or ((0.0, 1.0),) * count),
        **fields,
    )


def advantages(rewards, rule, ids=None, **choice):
    ids = [0] * len(rewards.total if isinstance(rewards, RewardTable) else rewards) if ids is None else ids
    return group_advantages(rewards, ids, rule, AdvantageChoice(**choice))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("choice", [{}, {"whiten": True}])
def test_a_z_score_does_not_depend_on_the_scale_of_the_reward(scale, choice):
    wanted = advantages(REWARDS, ZScore(eps=0.0), IDS, **choice).values
    np.testing.assert_allclose(advantages(REWARDS * scale, ZScore(eps=0.0), IDS, **choice).values, wanted, rtol=1e-9)
    found = advantages(REWARDS * scale, ZScore(), IDS, **choice)
    np.testing.assert_allclose(found.values, wanted, rtol=0.0101)  # eps takes 1 % of them at most
    assert found.frac_reward_zero_std == 0.0


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
def test_with_the_eps_of_the_trainers_a_small_reward_is_worth_what_one_of_scale_one_is(scale):
    wanted = advantages(REWARDS, ZScore(), IDS).values
    np.testing.assert_allclose(advantages(REWARDS * scale, ZScore(), IDS).values, wanted, rtol=5e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", [Mean(), LeaveOneOut()])
def test_a_distance_from_the_mean_scales_with_the_reward_and_is_the_same_once_whitened(scale, rule):
    wanted = advantages(REWARDS, rule, IDS).values
    np.testing.assert_allclose(advantages(REWARDS * scale, rule, IDS).values, wanted * scale, rtol=1e-9)
    whitened = advantages(REWARDS * scale, rule, IDS, whiten=True).values
    np.testing.assert_allclose(whitened, wanted / wanted.std(ddof=1), rtol=0.0101)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
def test_each_reward_is_normalised_at_its_own_scale(scale):
    other = np.roll(REWARDS, 1)
    one = table(np.stack([REWARDS, other], axis=1), [2.0, 0.5])
    scaled = table(np.stack([REWARDS, other * scale], axis=1), [2.0, 0.5], [(0, 1), (0, scale)])
    choice = {"aggregate": "normalize_then_sum"}
    wanted = advantages(one, ZScore(), IDS, **choice).values
    np.testing.assert_allclose(advantages(scaled, ZScore(), IDS, **choice).values, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("rule", [ZScore(), Mean(), LeaveOneOut()])
@pytest.mark.parametrize("aggregate", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize(
    "rounded",
    [[0.1 + 0.2, 0.3, 0.3, 0.3], [float(np.float32(0.1)), 0.1, 0.1, 0.1], [1 / 3 + 1 / 3, 2 / 3, 1 - 1 / 3, 2 / 3]],
)
def test_rewards_that_differ_by_rounding_teach_nothing(scale, rule, aggregate, rounded):
    rewards = table(np.array(rounded)[:, None] * scale, [1.0], [(0.0, scale)])
    found = advantages(rewards, rule, aggregate=aggregate, whiten=True)
    assert (found.values == 0).all() and found.frac_reward_zero_std == 1.0
    assert spread_fractions(rewards, [range(4)], 1e-6) == {"r0": 0.0}


def test_parts_that_cancel_leave_rounding_and_no_preference():
    rewards = table([[0.1 + 0.2, 0.3], [0.3, 0.3], [0.2, 0.2]], [1.0, -1.0])
    assert rewards.total.tolist() != [0.0] * 3
    assert (advantages(rewards, ZScore()).values == 0).all()
    residue = table([[0.1 + 0.2 - 0.3], [0.0], [0.0]], [1.0])
    assert (advantages(residue, ZScore()).values == 0).all()


def test_a_small_reward_beside_a_large_constant_one_still_teaches():
    rewards = table([[1.0, 1e-4], [1.0, 0.0], [1.0, 0.0], [1.0, 1e-4]], [1.0, 1.0])
    np.testing.assert_allclose(advantages(rewards, ZScore()).values, np.array([1, -1, -1, 1]) * 0.866, rtol=1e-3)


def test_a_task_of_a_small_scale_teaches_in_the_step_of_one_of_a_large_scale():
    rewards = np.concatenate([REWARDS[:4] * 1e-4, REWARDS[4:] * 1e6])
    np.testing.assert_allclose(
        advantages(rewards, ZScore(), IDS).values, advantages(REWARDS, ZScore(), IDS).values, rtol=5e-4
    )


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.integers(-20, 20), min_size=2, max_size=8),
    scale=st.floats(1e-12, 1e12),
    shift=st.floats(-100, 100),
)
def test_any_positive_scale_and_shift_of_the_rewards_leave_the_z_scores(rewards, scale, shift):
    wanted = advantages(np.array(rewards, dtype=float), ZScore(eps=0.0)).values
    moved = (np.array(rewards) + shift) * scale
    np.testing.assert_allclose(advantages(moved, ZScore(eps=0.0)).values, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [1e308, -1e308, 1e31, float("inf"), -float("inf")])
@pytest.mark.parametrize("aggregate", ["sum_then_normalize", "normalize_then_sum"])
def test_a_value_too_large_to_count_is_masked_and_its_group_goes_on(value, aggregate):
    rewards = table([[value], [1.0], [0.0], [0.5]], [1.0])
    found = advantages(rewards, ZScore(), aggregate=aggregate)
    assert found.values[0] == 0 and np.isfinite(found.values).all() and (found.values[1:3] != 0).all()
    assert rewards.is_too_large[:, 0].tolist() == [True, False, False, False]
    assert np.isnan(rewards.total[0]) and np.isnan(rewards.unit_total[0])


def test_a_weight_that_makes_a_value_overflow_masks_it_and_a_clip_saves_it():
    assert table([[1e10], [1.0]], [1e300]).is_too_large.tolist() == [[True], [True]]
    clipped = table([[1e308], [0.5]], [1.0], clips=((0.0, 1.0),))
    assert clipped.total.tolist() == [1.0, 0.5]
    opposed = table([[1e308, 1e308], [1.0, 0.0]], [1.0, -1.0])
    assert np.isnan(opposed.total[0]) and opposed.total[1] == 1.0


def test_a_gate_that_is_too_large_opens_nothing_and_masks_what_is_behind_it():
    gated = table([[1e308, 1.0], [1.0, 1.0]], [0.0, 1.0], gates=((), (0,)))
    assert np.isnan(gated.total[0]) and gated.total[1] == 1.0


def test_a_reward_of_a_small_range_passes_at_its_highest_and_not_at_its_lowest():
    assert table([[1e-12], [0.0]], [1.0], [(0.0, 1e-12)]).is_passed[:, 0].tolist() == [True, False]


def test_only_rewards_with_a_value_tell_completions_apart():
    rewards = table(
        [[0.0, 1.0, NAN, 0.0], [0.0, 0.0, NAN, 1.0], [0.0, 1.0, NAN, 0.0], [0.0, 1.0, NAN, 0.0]], [1, 2, 1, 0]
    )
    assert spread_fractions(rewards, [[0, 1], [2, 3]], 1e-6) == {"r0": 0.0, "r1": 0.5, "r2": 0.0}


def slow_pairs(optimized, mapped):
    """Every pair that the two measures order otherwise, as (larger sum, smaller sum)."""
    rows = range(len(optimized))
    return [(i, j) for i in rows for j in rows if optimized[i] > optimized[j] and mapped[i] < mapped[j]]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=10))
def test_disagreement_equals_the_double_loop_over_pairs(rows):
    optimized, mapped = np.array(rows, dtype=float).reshape(-1, 2).T
    found, pairs = disagreement(optimized, mapped / 6), slow_pairs(optimized, mapped)
    assert (found is None) == (not pairs)
    if found is not None:
        assert found.num_rows == len({worse for _, worse in pairs})
        assert mapped[found.worse] - mapped[found.better] == max(mapped[j] - mapped[i] for i, j in pairs)


def test_rewards_of_one_width_are_ordered_alike_whatever_their_weights():
    values = np.random.default_rng(0).random((50, 3))
    alike = table(values, [2.0, 0.5, -0.1], [(0, 1), (0, 1), (0, 1)])
    assert disagreement(alike.total, alike.unit_total) is None
    assert disagreement(np.array([NAN]), np.array([NAN])) is None
