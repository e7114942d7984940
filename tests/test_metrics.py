import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unigrpo.errors import UserError
from unigrpo.runs.metrics import StepTimer, read_metrics
from unigrpo.runs.trackers.jsonl import JsonLines

RECIPE: Any = None
"""The log does not read the recipe."""


@contextmanager
def opened(run_dir: Path, resumed_step: int = 0) -> Iterator[JsonLines]:
    with closing(JsonLines()) as log:
        log.start(RECIPE, run_dir, resumed_step)
        yield log


def test_each_record_is_one_line_and_readable_before_the_log_is_closed(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.step({"step": 1, "reward": 0.5})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "reward": 0.5}\n'
        log.step({"step": 2, "reward": np.float32(0.25)})
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}]


def test_numbers_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.step({"step": 1, "kl": float("nan"), "ratio_mean": np.float64("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "kl": None, "ratio_mean": None}


@pytest.mark.parametrize("num_bytes_lost", [1, 2, 10, 20])
def test_torn_last_line_is_mended(tmp_path: Path, num_bytes_lost: int) -> None:
    with opened(tmp_path) as log:
        for step in (1, 2, 3):
            log.step({"step": step, "reward": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-num_bytes_lost])
    num_whole = 3 if num_bytes_lost == 1 else 2
    with opened(tmp_path, resumed_step=3) as log:
        log.step({"step": 9})
    assert [record["step"] for record in read_metrics(tmp_path)] == [*range(1, num_whole + 1), 9]


def test_resumed_log_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for step in range(1, 6):
            log.step({"step": step})
    with opened(tmp_path, resumed_step=3) as log:
        log.step({"step": 4, "again": 1})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not JSON: .*; remove that line"):
        read_metrics(tmp_path)


def test_record_without_step_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as log, pytest.raises(ValueError, match="metrics without a step: reward"):
        log.step({"reward": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_no_log_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_timer_adds_up_a_part_entered_twice_and_the_step_holds_all_parts() -> None:
    timer = StepTimer()
    for _ in range(2):
        with timer.part("rollout"):
            time.sleep(0.01)
    with pytest.raises(KeyError), timer.part("update"):
        raise KeyError("x")
    metrics = timer.metrics()
    assert list(metrics) == ["timing_s/rollout", "timing_s/update", "timing_s/step"]
    assert metrics["timing_s/rollout"] >= 0.02
    assert metrics["timing_s/step"] >= metrics["timing_s/rollout"] + metrics["timing_s/update"]
