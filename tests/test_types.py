"""The records: what they refuse and what they derive."""

import numpy as np
import pytest

from unigrpo.types import Group, Message, Prompt, RewardTable


def table(values, weights, ranges):
    values = np.array(values, dtype=float)
    return RewardTable(
        names=tuple("abc"[: len(weights)]),
        values=values,
        status=np.zeros(values.shape, dtype=np.int8),
        weights=np.array(weights, dtype=float),
        ranges=tuple(ranges),
    )


def test_the_papers_weights_by_hand():
    found = table([[1.0, 0.0], [np.nan, 1.0], [np.nan, np.nan]], [2.0, 0.5], [(0, 1), (0, 1)])
    assert found.total.tolist()[:2] == [2.0, 0.5]
    assert np.isnan(found.total[2])
    assert found.unit_total.tolist()[:2] == [0.8, 1.0]
    assert np.isnan(found.unit_total[2])


def test_a_range_other_than_one_is_mapped_to_the_unit_interval():
    assert table([[-1.0], [0.0]], [1.0], [(-1, 1)]).unit_total.tolist() == [0.0, 0.5]


def test_a_negative_weight_counts_down_and_stays_in_the_unit_interval():
    found = table([[1.0, 0.25]], [1.0, -1.0], [(0, 1), (0, 1)])
    assert found.total.tolist() == [0.75]
    assert found.unit_total.tolist() == [0.875]


def test_weight_zero_is_logged_only():
    assert table([[1.0, 0.0]], [1.0, 0.0], [(0, 1), (0, 1)]).unit_total.tolist() == [1.0]


def test_a_group_refuses_another_prompts_rollout():
    class Rollout:
        prompt = Prompt(id="b", task="reason", messages=(Message(role="user", text="x"),))

    with pytest.raises(ValueError, match="'b' is in the group of 'a'"):
        Group(prompt=Prompt(id="a", task="reason", messages=(Message(role="user", text="x"),)), rollouts=(Rollout(),))
