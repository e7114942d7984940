import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from unigrpo.cli import live
from unigrpo.cli.follow import follow
from unigrpo.cli.live import LiveObserver, Pace, PlainObserver, columns_of, duration, make_observer
from unigrpo.runs.trackers.base import Observer

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


def _console(**keywords: object) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=120, **keywords), file  # type: ignore[arg-type]


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


def test_output_to_a_file_is_one_plain_line_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    console, file = _console()
    with make_observer(console, num_steps=10) as observer:
        observer.phase("loading policy")
        observer.step(STEP)
        observer.done({"status": "completed", "wall_s": 65.0})
    lines = file.getvalue().splitlines()
    assert lines[0] == "loading policy"
    assert (
        lines[1] == "step 3  reward 0.500  reason 0.250  imagine 0.750  correctness 0.12  kl 0.0012  s 2.0  left 14.0s"
    )
    assert lines[2] == "completed in 1m05s"
    assert "\x1b" not in file.getvalue()


def test_terminal_gets_the_table_and_ci_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    console, _ = _console(force_terminal=True)
    assert isinstance(make_observer(console), LiveObserver)
    monkeypatch.setenv("CI", "true")
    assert isinstance(make_observer(console), PlainObserver)


def test_live_table_holds_the_step_the_phase_and_the_time_left() -> None:
    console, file = _console(force_terminal=True)
    with LiveObserver(console, num_steps=10) as observer:
        observer.phase("starting rewards")
        observer.progress(2, 4, "workers")
        observer.step(STEP)
        time.sleep(0.6)
    text = file.getvalue()
    for wanted in ("reason", "0.250", "starting rewards 2/4 workers", "14.0s left"):
        assert wanted in text


def test_long_wait_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LONG_WAIT_S", 0.05)
    console, file = _console()
    with PlainObserver(console) as observer:
        observer.phase("starting rewards")
        time.sleep(0.3)
    assert "still starting rewards, 0." in file.getvalue()
    num_lines = len(file.getvalue().splitlines())
    time.sleep(0.15)
    assert len(file.getvalue().splitlines()) == num_lines


def test_progress_is_written_at_each_tenth() -> None:
    console, file = _console()
    with PlainObserver(console) as observer:
        for done in range(1, 101):
            observer.progress(done, 100, "prompts")
    assert file.getvalue().splitlines() == [f"prompts: {10 * tenth}/100" for tenth in range(1, 11)]


def test_time_left_is_median_step_time_times_steps_left() -> None:
    pace = Pace(10)
    assert pace.left == ""
    for step, seconds in enumerate([100.0, 2.0, 2.0], start=1):
        pace.step({"step": step, "timing_s/step": seconds})
    assert pace.left == "14.0s"
    pace.step({"step": 10, "timing_s/step": 2.0})
    assert pace.left == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2s"), (59.9, "59.9s"), (185.2, "3m05s"), (3599.9, "1h00m"), (7620, "2h07m")]
)
def test_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_interrupted_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def start(observer: Observer) -> None:
        (tmp_path / "recipe.yaml").write_text("name: x\n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(start, tmp_path, 10)
    assert f"go on with: unigrpo resume {tmp_path}" in capsys.readouterr().out


def test_interrupt_before_the_run_exists_promises_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def start(observer: Observer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(start, tmp_path / "run", 10)
    assert "resume" not in capsys.readouterr().out


def test_a_reward_that_is_called_as_a_task_has_a_column_of_its_own() -> None:
    metrics = {"step": 1, "tasks/countdown/reward": 0.5, "rewards/countdown/mean": 0.25}
    assert columns_of(metrics) == {"step": "1", "countdown": "0.500", "rewards/countdown/mean": "0.25"}
