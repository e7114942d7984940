"""Gates, clips, weight 0 and failures in totals and advantages, each worked by hand."""

import numpy as np
import pytest

from unigrpo.methods.advantages.mean import Mean
from unigrpo.methods.advantages.zscore import ZScore
from unigrpo.methods.groups import group_advantages
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.runtime.reward_checks import composition_problems
from unigrpo.settings.learning import AdvantageChoice
from unigrpo.settings.rewards import EnvSettings, RewardSettings

NAN = float("nan")
OK, ABSENT, INVALID, ERROR, TIMEOUT = RewardStatus


def table(values, weights, *, status=None, **fields):
    values = np.array(values, dtype=np.float64)
    shown = np.where(np.isnan(values), ABSENT, OK) if status is None else np.array(status)
    return RewardTable(
        names=tuple("abcd"[: values.shape[1]]),
        values=values,
        status=shown.astype(np.int8),
        weights=np.array(weights, dtype=np.float64),
        ranges=fields.pop("ranges", ((0.0, 1.0),) * values.shape[1]),
        **fields,
    )


def test_a_value_counts_where_its_gate_is_at_its_highest_and_is_the_lowest_elsewhere():
    gated = table([[1.0, 1.0], [0.5, 1.0], [0.0, 0.0], [NAN, 1.0]], [0.25, 1.0], gates=((), (0,)))
    # Of the last row the gate does not apply, so it is not in the way.
    assert gated.counted[:, 1].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert gated.total.tolist() == [1.25, 0.125, 0.0, 1.0]
    assert gated.values[:, 1].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_pass_at_opens_a_gate_below_its_highest():
    gated = table([[0.5, 1.0], [0.4, 1.0]], [0.0, 1.0], gates=((), (0,)), pass_at=(0.5, None))
    assert gated.total.tolist() == [1.0, 0.0]


def test_a_gate_that_failed_masks_the_row_and_one_that_timed_out_is_shut():
    status = [[ERROR, OK], [INVALID, OK], [TIMEOUT, OK], [OK, OK]]
    gated = table([[NAN, 1.0], [NAN, 1.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 1.0], status=status, gates=((), (0,)))
    np.testing.assert_array_equal(gated.total, [NAN, NAN, 0.0, 1.0])
    np.testing.assert_array_equal(gated.unit_total, [NAN, NAN, 0.0, 1.0])


def test_a_shut_gate_shuts_the_gates_behind_it_in_whatever_order_they_are_named():
    rows = [[1.0, 1.0, 1.0], [1.0, 1.0, 0.5], [1.0, 0.5, 1.0]]
    chain = table(rows, [1.0, 1.0, 1.0], gates=((1,), (2,), ()))
    assert chain.counted.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.5], [0.0, 0.5, 1.0]]


def test_the_worst_of_a_negative_weight_is_its_highest_value():
    gated = table([[0.0, 0.2]], [0.0, -1.0], gates=((), (0,)))
    assert gated.total.tolist() == [-1.0]
    assert gated.unit_total.tolist() == [0.0]


def test_clip_bounds_what_counts_and_what_is_highest():
    clipped = table([[0.9, 1.0], [0.3, 1.0], [0.1, 1.0]], [1.0, 1.0], clips=((0.2, 0.4), None), gates=((), (0,)))
    assert clipped.counted.tolist() == [[0.4, 1.0], [0.3, 0.0], [0.2, 0.0]]
    assert clipped.unit_total.tolist() == pytest.approx([1.0, 0.25, 0.0])


def test_a_row_of_which_an_optimized_reward_failed_has_no_total():
    status = [[OK, OK], [ERROR, OK], [ABSENT, OK], [OK, OK]]
    values = [[1.0, 0.5], [NAN, 0.5], [NAN, 0.5], [0.0, 0.5]]
    np.testing.assert_array_equal(table(values, [2.0, 0.5], status=status).total, [2.25, NAN, 0.25, 0.25])
    found = group_advantages(table(values, [2.0, 0.5], status=status), [0] * 4, Mean(), AdvantageChoice())
    assert found.values[1] == 0.0
    assert found.values.sum() == pytest.approx(0.0)


@pytest.mark.parametrize("aggregate", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("held_out", [NAN, -1e9, 1e9, 0.5])
def test_a_held_out_reward_changes_no_advantage_whatever_it_says(aggregate, held_out):
    settings = AdvantageChoice(aggregate=aggregate)
    alone = group_advantages(table([[1.0], [0.0], [0.5], [0.5]], [1.0]), [0, 0, 1, 1], ZScore(), settings)
    status = [[OK, ERROR if np.isnan(held_out) else OK]] * 4
    values = [[1.0, held_out], [0.0, held_out], [0.5, held_out], [0.5, held_out]]
    both = group_advantages(table(values, [1.0, 0.0], status=status), [0, 0, 1, 1], ZScore(), settings)
    assert both.values.tolist() == alone.values.tolist()
    assert both.frac_reward_zero_std == alone.frac_reward_zero_std == 0.5


def test_each_reward_is_normalized_over_the_rows_that_have_it():
    rows = table([[1.0, 10.0], [0.0, NAN], [1.0, 30.0], [0.0, NAN]], [1.0, 1.0], ranges=((0, 1), (0, 100)))
    found = group_advantages(rows, [0] * 4, Mean(), AdvantageChoice(aggregate="normalize_then_sum"))
    assert found.values.tolist() == [0.5 - 10.0, -0.5, 0.5 + 10.0, -0.5]


def test_whitening_gives_unit_spread_and_keeps_groups_without_a_preference_at_zero():
    rewards = np.array([3.0, 1.0, 5.0, 5.0, 0.1, 0.7, NAN, NAN])
    ids = [0, 0, 1, 1, 2, 2, 3, 3]
    plain = group_advantages(rewards, ids, Mean(), AdvantageChoice())
    white = group_advantages(rewards, ids, Mean(), AdvantageChoice(whiten=True))
    # 1, -1, 0, 0, -0.3, 0.3 of the six rows that have a reward: variance (1 + 1 + 0.09 + 0.09) / 5.
    assert white.values.tolist() == pytest.approx((plain.values / (np.sqrt(2.18 / 5) + 1e-4)).tolist())
    assert white.values[[2, 3, 6, 7]].tolist() == [0.0] * 4


def reward(**settings):
    return RewardSettings(use="a:b", **settings)


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ({"a": reward(gate=["fromat"])}, "rewards.a.gate: there is no reward 'fromat'; the recipe has a"),
        ({"a": reward(gate=["a"])}, "it waits for itself (a -> a)"),
        ({"a": reward(gate=["b"]), "b": reward(gate=["a"])}, "it waits for itself (a -> b -> a)"),
        ({"a": reward(clip=(1.0, 0.0))}, "rewards.a.clip: [1, 0] is empty"),
        ({"a": reward(weight=0.0, on_error="drop_group")}, "may drop nothing; wanted mask"),
        ({"a": reward(cache="disk")}, "cache: disk and cache_file go together"),
        ({"a": reward(cache_file="x")}, "cache: disk and cache_file go together"),
        ({"a": reward(num_gpus=1.0)}, "set placement: ray, or leave it out"),
        ({"a": reward(worker="w"), "b": reward(worker="w", num_workers=2)}, "rewards.b.num_workers: 2 in the worker w"),
        ({"a": reward(worker="w"), "b": reward(worker="w", placement="ray")}, "rewards.b.placement: ray in the worker"),
        (
            {"a": reward(worker="w"), "b": reward(worker="w", env=EnvSettings(requirements=["x"]))},
            "rewards.b.env: python=None requirements=['x']",
        ),
    ],
)
def test_rewards_that_do_not_fit_together_are_named(rewards, problem):
    found = composition_problems(rewards)
    assert any(problem in line for line in found), found


def test_rewards_that_fit_together_have_no_problems():
    rewards = {
        "format": reward(weight=0.1, pass_at=0.5, worker="w", timeout_s=1.0),
        "correct": reward(gate=["format"], clip=(0.0, 0.8), worker="w", cache="disk", cache_file="c.sqlite"),
        "accurate": reward(pass_at=0.9),
        "held_out": reward(weight=0.0, placement="ray", num_gpus=0.5),
    }
    assert composition_problems(rewards) == []
