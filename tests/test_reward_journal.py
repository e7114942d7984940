import json
from pathlib import Path

import numpy as np
import pytest

from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.runtime.journal import ScoredStep, load_step, save_step


def table(num_rows: int = 3) -> RewardTable:
    values = np.array([[0.1, np.nan], [1 / 3, -2.5], [np.nan, np.nan]])[:num_rows]
    status = np.array([[0, 1], [0, 0], [3, 1]], dtype=np.int8)[:num_rows]
    return RewardTable(
        names=("a", "b"), values=values, status=status, weights=np.array([1.0, 0.5]), ranges=((0.0, 1.0), (-3.0, 3.0))
    )


@pytest.mark.parametrize("num_rows", [0, 3])
def test_a_table_comes_back_to_the_last_bit(tmp_path: Path, num_rows: int) -> None:
    saved = table(num_rows)
    save_step(tmp_path / "new" / "step.json", ScoredStep(table=saved))
    loaded = load_step(tmp_path / "new" / "step.json").table
    assert (loaded.names, loaded.ranges) == (saved.names, saved.ranges)
    np.testing.assert_array_equal(loaded.values, saved.values)
    np.testing.assert_array_equal(loaded.status, saved.status)
    np.testing.assert_array_equal(loaded.weights, saved.weights)
    assert (loaded.values.dtype, loaded.status.dtype) == (saved.values.dtype, saved.status.dtype)


def test_the_file_is_strict_json_with_null_and_status_names(tmp_path: Path) -> None:
    save_step(tmp_path / "t.json", ScoredStep(table=table()))
    document = json.loads((tmp_path / "t.json").read_text(), parse_constant=pytest.fail)
    assert document["values"][0] == [0.1, None]
    assert document["status"][2] == [RewardStatus.ERROR.name, RewardStatus.NOT_APPLICABLE.name]


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_step(tmp_path / "t.json", ScoredStep(table=table()))
    save_step(tmp_path / "t.json", ScoredStep(table=table(0)))
    assert load_step(tmp_path / "t.json").table.values.shape == (0, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"names": ["a"], "values": [["x"]]}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.json is not a reward table"):
        load_step(tmp_path / "t.json")
