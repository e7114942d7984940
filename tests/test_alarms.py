"""Alarms on hand-made records: what sets each, and what does not."""

import math
from pathlib import Path

import numpy as np
import pytest
from reward_rollouts import rollout

from unigrpo.reward_table import RewardTable
from unigrpo.runs.alarms import SILENCE, WINDOW, Alarms, about, alarms_of, completion_metrics
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Rollouts

REWARDS = {
    "optimized": RewardSettings(use="a:b", weight=1.0, tasks=["imagine"]),
    "held_out": RewardSettings(use="a:b", weight=0.0, tasks=["imagine"]),
}


def noise(step):
    return 0.01 * math.sin(37.0 * step)


def record(step, **values):
    flat = {"tasks/imagine/reward": 0.5, "tasks/imagine/mean_length": 16.0, "frac_reward_zero_std": 0.1}
    return {"step": step, **flat, **values}


def alarms(records, rewards=REWARDS):
    watch = Alarms(rewards)
    for one in records:
        found = watch.observe(one)
    return found


def rising_and_falling(slope=0.01, other=-0.01):
    return [
        record(
            step,
            **{
                "rewards/optimized/mean": 0.3 + slope * step + noise(step),
                "rewards/held_out/mean": 0.6 + other * step + noise(step + 5),
            },
        )
        for step in range(WINDOW)
    ]


def test_an_optimized_reward_that_rises_while_a_held_out_one_falls_sets_the_alarm():
    found = alarms(rising_and_falling())
    assert alarms_of(found) == ["held_out_falls"]
    # Halves of a line of slope 0.01 over 20 steps differ by ten steps, 0.1.
    assert found["alarm/held_out_falls/rise"] == pytest.approx(0.1, abs=0.01)
    assert found["alarm/held_out_falls/fall"] == pytest.approx(-0.1, abs=0.01)


@pytest.mark.parametrize(("slope", "other"), [(0.01, 0.01), (-0.01, -0.01), (0.0, -0.01), (0.01, 0.0)])
def test_no_other_pair_of_movements_sets_it(slope, other):
    assert alarms_of(alarms(rising_and_falling(slope, other))) == []


@pytest.mark.parametrize("change", [{"watch": False}, {"tasks": ["reason"]}, {"weight": 1.0}])
def test_a_measurement_or_a_reward_of_another_task_is_not_held_out(change):
    rewards = REWARDS | {"held_out": REWARDS["held_out"].model_copy(update=change)}
    assert "held_out_falls" not in alarms_of(alarms(rising_and_falling(), rewards))


def test_a_negative_weight_rises_when_its_value_falls():
    rewards = REWARDS | {"optimized": REWARDS["optimized"].model_copy(update={"weight": -1.0})}
    assert alarms_of(alarms(rising_and_falling(-0.01, -0.01), rewards)) == ["held_out_falls"]
    assert alarms_of(alarms(rising_and_falling(), rewards)) == []


@pytest.mark.parametrize("values", [{"tasks/imagine/reward": 0.99}, {"frac_reward_zero_std": 0.9}])
def test_a_reward_at_its_highest_or_groups_without_spread_are_saturation(values):
    assert alarms_of(alarms([record(step, **values) for step in range(WINDOW)])) == ["saturation"]


def test_duplicates_count_where_they_have_become_more():
    early = [record(step, **{"tasks/imagine/duplicate_fraction": 0.1}) for step in range(WINDOW)]
    late = [record(step, **{"tasks/imagine/duplicate_fraction": 0.7}) for step in range(WINDOW)]
    assert alarms_of(alarms([*early, *late])) == ["duplicates"]
    assert alarms_of(alarms([*late, *late])) == []


@pytest.mark.parametrize(("length", "expected"), [(25.0, ["length_drift"]), (10.0, ["length_drift"]), (20.0, [])])
def test_completions_that_grow_or_shrink_by_half_are_drift(length, expected):
    early = [record(step) for step in range(WINDOW)]
    late = [record(step, **{"tasks/imagine/mean_length": length}) for step in range(WINDOW)]
    found = alarms([*early, *late])
    assert alarms_of(found) == expected
    assert found["alarm/length_drift/ratio"] == pytest.approx(length / 16.0)


def test_a_resumed_run_has_the_alarms_of_one_that_was_not_stopped():
    records = [*rising_and_falling(), *rising_and_falling(0.02, -0.02)]
    whole, resumed = Alarms(REWARDS), Alarms(REWARDS, records[:33])
    expected = [whole.observe(one) for one in records]
    assert [resumed.observe(one) for one in records[33:]] == expected[33:]


def test_nothing_is_said_before_the_window_is_full():
    assert set(alarms(rising_and_falling()[:-1]).values()) == {0.0}


def test_repeats_are_counted_in_groups_that_are_not_all_right(tmp_path: Path):
    texts = ["a", "a", "a", "b", *"cccc", *"defg"]
    values = np.array([0.0] * 4 + [1.0] * 4 + [0.5] * 4)[:, None]
    table = RewardTable(
        names=("r",), values=values, status=np.zeros((12, 1), np.int8), weights=np.ones(1), ranges=((0.0, 1.0),)
    )
    rows = [rollout(text, number=number) for number, text in enumerate(texts)]
    groups = tuple(number // 4 for number in range(12))
    found = completion_metrics(Rollouts(items=tuple(rows), group_ids=groups), table)
    assert found == {"tasks/reason/mean_length": 3.0, "tasks/reason/duplicate_fraction": 2 / 8}
    pixels = [np.full((2, 2, 3), 7 * (number == 3), np.uint8) for number in range(4)]
    pictures = [rollout(None, number=number, image=image, kind="imagine") for number, image in enumerate(pixels)]
    one = RewardTable(
        names=("r",), values=np.zeros((4, 1)), status=np.zeros((4, 1), np.int8), weights=np.ones(1), ranges=((0, 1),)
    )
    group = Rollouts(items=tuple(pictures), group_ids=(0,) * 4)
    assert completion_metrics(group, one)["tasks/imagine/duplicate_fraction"] == 0.5


@pytest.mark.parametrize(
    ("record", "state"),
    [
        ({"mean": 0.0, "too_large_rate": 0.5}, "50% of its values masked, too large to count"),  # +1e308 and -1e308
        ({"mean": math.inf, "too_large_rate": 1.0}, "100% of its values masked, too large to count"),
        ({"too_large_rate": 0.25, "error_rate": 0.75}, "25% of its values masked, too large to count"),
        ({"error_rate": 1.0}, "no value, 100% failed"),
        ({"mean": math.nan, "error_rate": 1.0}, "no value, 100% failed"),
        ({"mean": 0.0, "timeout_rate": 1.0}, "0, 100% timed out"),
        ({"mean": 0.5, "error_rate": 0.5, "timeout_rate": 0.25}, "0.5, 50% failed, 25% timed out"),
        ({"mean": None, "error_rate": None}, "no value"),
        ({"mean": 1e-6}, "1e-06"),
    ],
)
def test_a_silent_reward_is_said_to_be_what_it_is(record: dict[str, float | None], state: str) -> None:
    names = {name: f"{'rewards' if name == 'mean' else 'reward'}/a/{name}" for name in record}
    quiet = {"reward/a/spread_fraction": 0.0} | {names[name]: value for name, value in record.items()}
    watch = Alarms({"a": RewardSettings(use="a:b")})
    found = [watch.observe({"step": step, **quiet}) for step in range(1, SILENCE + 1)]
    assert about(found[-1], "no_signal") == f"a ({state}) for {SILENCE} steps"
    assert any(f"(at last {state})" in note for note in watch.course().notes())
