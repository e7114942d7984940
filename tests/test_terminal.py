import time
from pathlib import Path
from typing import Any

import pytest

from unigrpo.cli.follow import Followed
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.trackers import terminal
from unigrpo.runs.trackers.terminal import Terminal, columns_of, duration

STEP = {
    "step": 3,
    "reward": 0.5,
    "tasks/reason/reward": 0.25,
    "tasks/imagine/reward": 0.75,
    "rewards/correctness/mean": 0.125,
    "rewards/correctness/std": 0.3,
    "kl": 0.00123,
    "clip_ratio/region_mean": None,
    "timing_s/step": 2.0,
}


def test_step_shows_rewards_by_task_and_by_part_and_leaves_out_what_is_not_there() -> None:
    assert columns_of(STEP) == {
        "step": "3",
        "reward": "0.500",
        "reason": "0.250",
        "imagine": "0.750",
        "correctness": "0.12",
        "kl": "0.0012",
        "s": "2.0",
    }


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("CI", raising=False)


def started(is_live: bool | None = None, num_steps: int = 10) -> Terminal:
    tracker = Terminal(is_live)
    tracker.start(load_recipe("quickstart", [f"num_steps={num_steps}"]), Path(), 0)
    return tracker


def test_output_to_a_file_is_one_plain_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = started()
    tracker.phase("loading policy")
    tracker.step(STEP)
    tracker.done({"status": "completed", "wall_s": 65.0})
    tracker.close()
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "loading policy",
        "step 3  reward 0.500  reason 0.250  imagine 0.750  correctness 0.12  kl 0.0012  s 2.0  left 14.0s",
        "completed in 1m05s",
    ]
    assert "\x1b" not in text


def test_terminal_gets_the_table_and_ci_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for is_ci in (False, True):
        if is_ci:
            monkeypatch.setenv("CI", "true")
        tracker = started()
        tracker.phase("starting rewards")
        tracker.close()
        assert (capsys.readouterr().out == "starting rewards\n") is is_ci


def test_live_table_holds_the_step_the_phase_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = started(is_live=True)
    tracker.phase("starting rewards")
    tracker.progress(2, 4, "workers")
    tracker.step(STEP)
    time.sleep(0.6)
    tracker.close()
    text = capsys.readouterr().out
    for wanted in ("reason", "0.250", "starting rewards 2/4 workers", "14.0s left"):
        assert wanted in text


def test_long_wait_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "LONG_WAIT_S", 0.05)
    tracker = started()
    tracker.phase("starting rewards")
    time.sleep(0.3)
    tracker.close()
    assert "still starting rewards, 0." in capsys.readouterr().out
    time.sleep(0.15)
    assert capsys.readouterr().out == ""


def test_progress_is_written_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = started()
    for done in range(1, 101):
        tracker.progress(done, 100, "prompts")
    assert capsys.readouterr().out.splitlines() == [f"prompts: {10 * tenth}/100" for tenth in range(1, 11)]


def test_time_left_is_median_step_time_times_steps_left(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = started()
    for step, seconds in enumerate([100.0, 2.0, 2.0], start=1):
        tracker.step({"step": step, "timing_s/step": seconds})
    tracker.step({"step": 10, "timing_s/step": 2.0})
    *_, third, last = capsys.readouterr().out.splitlines()
    assert third.endswith("left 14.0s")
    assert "left" not in last


def test_alarms_that_are_set_stand_in_their_own_column() -> None:
    metrics: dict[str, Any] = {
        "step": 1,
        "alarm/saturation": 1.0,
        "alarm/saturation/reward": 1.0,
        "alarm/duplicates": 0.0,
    }
    assert columns_of(metrics)["alarm"] == "saturation"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2s"), (59.9, "59.9s"), (185.2, "3m05s"), (3599.9, "1h00m"), (7620, "2h07m")]
)
def test_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_interrupted_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Followed(tmp_path):
        (tmp_path / "recipe.yaml").write_text("name: x\n")
        raise KeyboardInterrupt
    assert f"go on with: unigrpo resume {tmp_path}" in capsys.readouterr().out


def test_interrupt_before_the_run_exists_promises_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Followed(tmp_path / "run"):
        raise KeyboardInterrupt
    assert "resume" not in capsys.readouterr().out


def test_a_reward_that_is_called_as_a_task_has_a_column_of_its_own() -> None:
    metrics = {"step": 1, "tasks/countdown/reward": 0.5, "rewards/countdown/mean": 0.25}
    assert columns_of(metrics) == {"step": "1", "countdown": "0.500", "rewards/countdown/mean": "0.25"}
