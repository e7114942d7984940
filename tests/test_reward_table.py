"""What a reward table derives: sums, what passes, and that each is derived once. Gates and clips: test_composition."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from unigrpo.reward_table import RewardTable
from unigrpo.runs.samples import write_samples
from unigrpo.types import Message, PolicyVersion, Prompt, Rollout

NAN = float("nan")
DERIVED = ("bounds", "counted", "is_passed", "is_comparable", "total", "unit_total")


def rollout(number: int) -> Rollout:
    return Rollout(
        prompt=Prompt(id=str(number), kind="reason", messages=(Message(role="user", text="x"),)),
        sample_index=0,
        token_ids=np.zeros(1, dtype=np.int64),
        spans=(),
        is_completion=np.ones(1, dtype=bool),
        committed_step=np.zeros(1, dtype=np.int32),
        committed_logprobs=np.zeros(1, dtype=np.float32),
        text="y",
        image=None,
        seed=0,
        policy_version=PolicyVersion(step=0, kind="adapter", sha256=""),
        is_truncated=False,
    )


def table(values, weights, ranges, **fields):
    values = np.array(values, dtype=float)
    return RewardTable(
        names=tuple("abc"[: len(weights)]),
        values=values,
        status=np.zeros(values.shape, dtype=np.int8),
        weights=np.array(weights, dtype=float),
        ranges=tuple(ranges),
        **fields,
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


def test_a_completion_passes_at_the_highest_value_within_rounding():
    parts = 0.7 + 0.2 + 0.1  # 0.9999999999999999
    found = table([[1.0], [parts], [0.999], [0.3], [0.0], [NAN]], [1.0], [(0, 1)])
    assert parts < 1.0
    assert found.is_passed[:, 0].tolist() == [True, True, False, False, False, False]
    assert [found.passed_of(row)["a"] for row in range(6)] == [True, True, False, False, False, None]
    assert found.values_of(3) == {"a": 0.3}
    assert found.values_of(5) == {"a": None}


def test_a_completion_passes_at_pass_at_and_where_a_clip_ends():
    assert table([[0.6], [0.4]], [1.0], [(0, 1)], pass_at=(0.5,)).is_passed[:, 0].tolist() == [True, False]
    clipped = table([[0.9], [0.8], [0.7]], [1.0], [(0, 1)], clips=((0.0, 0.8),))
    assert clipped.is_passed[:, 0].tolist() == [True, True, False]


def test_what_a_gate_shuts_does_not_pass():
    found = table([[0.0, 1.0], [1.0, 1.0], [NAN, 1.0]], [1.0, 1.0], [(0, 1)] * 2, gates=((), (0,)))
    assert found.is_passed.tolist() == [[False, False], [True, True], [False, False]]
    assert found.passed_of(2) == {"a": None, "b": None}  # The gate gave nothing, so nobody knows what is behind it.


def test_a_gate_is_open_where_its_reward_is_passed_and_nowhere_else():
    rows = np.random.default_rng(0).integers(0, 5, (200, 2)) / 4
    for pass_at in (None, 0.25, 0.5, 0.75, 1.0):
        found = table(rows, [1.0, 1.0], [(0, 1)] * 2, gates=((), (0,)), pass_at=(pass_at, None))
        assert found.counted[:, 1].tolist() == np.where(found.is_passed[:, 0], rows[:, 1], 0.0).tolist()


def test_a_table_is_derived_once_and_nobody_can_write_into_it():
    found = table([[1.0, 0.5]], [1.0, 1.0], [(0, 1)] * 2)
    for name in DERIVED:
        derived = getattr(found, name)
        assert getattr(found, name) is derived
        with pytest.raises(ValueError, match="read-only"):
            derived[0] = 0
    with pytest.raises(FrozenInstanceError):
        found.total = found.values


def test_saving_2000_samples_derives_their_table_once(tmp_path, monkeypatch):
    counts = []
    shut = RewardTable._shut
    monkeypatch.setattr(RewardTable, "_shut", lambda *arguments: (counts.append(1), shut(*arguments))[1])
    values = np.random.default_rng(0).random((2000, 2))
    found = table(values, [1.0, 1.0], [(0, 1)] * 2, gates=((), (0,)))
    write_samples(tmp_path / "samples.jsonl", [(rollout(row), found, row) for row in range(2000)])
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 2000
    assert len(counts) == 1


def test_samples_say_what_passed_apart_from_what_it_was_worth(tmp_path):
    found = table([[0.3, 1.0], [1.0, NAN]], [1.0, 1.0], [(0, 1)] * 2)
    write_samples(tmp_path / "samples.jsonl", [(rollout(row), found, row) for row in range(2)])
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [record["rewards"] for record in records] == [{"a": 0.3, "b": 1.0}, {"a": 1.0, "b": None}]
    assert [record["passed"] for record in records] == [{"a": False, "b": True}, {"a": True, "b": None}]


def test_a_table_survives_another_process_and_derives_the_same_there():
    found = table([[1.0, 0.5], [NAN, 0.25]], [1.0, -1.0], [(0, 1)] * 2, pass_at=(None, 0.5))
    before = pickle.loads(pickle.dumps(found))
    for name in DERIVED:
        np.testing.assert_array_equal(getattr(before, name), getattr(found, name))
    after = pickle.loads(pickle.dumps(found))
    for name in DERIVED:
        np.testing.assert_array_equal(getattr(after, name), getattr(found, name))


def test_a_worker_without_numpy_can_import_the_statuses():
    code = "import sys; sys.modules['numpy'] = None; from unigrpo.reward_table import RewardStatus; RewardStatus.OK"
    subprocess.run([sys.executable, "-c", code], check=True)
