"""What a person is told of a reward: values beyond its range, why it cannot be made, and what it prints."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reward_rollouts import rollout

from unigrpo.cli.app import run
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rewards.runtime.process import RewardLoadError
from unigrpo.rewards.runtime.table import values_beyond
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent / "reward_specimens.py"


def specimen(name: str) -> dict[str, RewardSettings]:
    return {"it": RewardSettings(use=f"{SPECIMENS}:{name}")}


def test_values_beyond_the_range_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["low", "high", "rounded", "inside"]
    with RewardPool(specimen("beyond")) as pool, caplog.at_level(logging.WARNING):
        for _ in range(2):
            scored = pool.score([rollout(text, number=number) for number, text in enumerate(texts)])
            table = scored.table
            assert scored.metrics["reward/it/out_of_range_rate"] == 0.5
        scored = pool.score([rollout("inside")])
        assert scored.metrics["reward/it/out_of_range_rate"] == 0.0
    assert table.values[:2, 0].tolist() == [-0.5, 3.0]
    said = [record.getMessage() for record in caplog.records if "outside of its range" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("reward it gave -0.5, outside of its range [0, 1]")


@pytest.mark.parametrize(
    ("use", "column"),
    [
        ("vqa_accuracy:VQAAccuracy", "answer, answers"),
        ("multiple_choice:MultipleChoice", "answer, choices"),
        ("correctness:Correctness", "answer"),
        ("scene:Scene", "objects, relation"),
    ],
)
def test_a_column_that_no_prompt_has_is_named_once(use: str, column: str, caplog: pytest.LogCaptureFixture) -> None:
    is_of_pictures = use.startswith("scene")
    image = np.zeros((64, 64, 3), np.uint8) if is_of_pictures else None
    rows = [rollout(None if is_of_pictures else "5", number=number, image=image, answer=None) for number in range(3)]
    settings = {"it": RewardSettings(use=f"unigrpo.rewards.{use}")}
    with RewardPool(settings) as pool, caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert np.isnan(pool.score(rows).table.values).all()
    said = [record.getMessage() for record in caplog.records if "have nothing in" in record.getMessage()]
    assert len(said) == 1
    assert (
        f"reward it applies to none of the 3 completions of this step, and their prompts have nothing in {column},"
        in (said[0])
    )


def test_a_reward_that_applies_to_nothing_though_the_data_has_its_columns_is_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture = rollout(None, image=np.zeros((4, 4, 3), np.uint8), answer="5")
    with (
        RewardPool({"it": RewardSettings(use="unigrpo.rewards.correctness:Correctness")}) as pool,
        caplog.at_level(logging.WARNING),
    ):
        assert np.isnan(pool.score([picture]).table.values).all()
    assert not caplog.records


def test_the_ends_of_a_range_lie_inside() -> None:
    assert values_beyond(np.array([-2.0, 3.0, -2.1, 3.1, 0.0]), (-2.0, 3.0)).tolist() == [-2.1, 3.1]


def test_a_reward_that_cannot_be_made_is_one_message_and_its_traceback_a_note() -> None:
    with RewardPool(specimen("Unloadable")) as pool, pytest.raises(RewardLoadError) as caught:
        pool.wait_until_loaded()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("FileNotFoundError: weights.safetensors is missing")
    assert "raise FileNotFoundError" in caught.value.__notes__[0]


def test_the_command_shows_no_traceback_of_a_reward_that_cannot_be_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "p", "completion": "c"}\n')
    assert run(["score", f"{SPECIMENS}:Unloadable", str(data)]) == 2
    shown = capfd.readouterr().err
    assert "weights.safetensors is missing" in shown
    assert "Traceback" not in shown
    assert "--debug for the traceback" in shown


def test_what_a_reward_prints_goes_to_standard_error_with_escapes(capfd: pytest.CaptureFixture[str]) -> None:
    with RewardPool(specimen("prints")) as pool:
        pool.score([rollout("a")])
    shown = capfd.readouterr()
    assert "printed \\x1b[31m\\ud800" in shown.err
    assert "\x1b" not in shown.err
    assert "printed" not in shown.out


def test_a_worker_that_was_killed_is_not_said_to_have_run_out_of_memory(caplog: pytest.LogCaptureFixture) -> None:
    with RewardPool({"it": RewardSettings(use=f"{SPECIMENS}:kills_itself", max_failed_fraction=1.0)}) as pool:
        scored = pool.score([rollout("a")])
        assert "SIGKILL (killed from outside or out of memory)" in scored.reasons["it"][0]


def test_ray_that_does_not_start_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from unigrpo.ray_start import start_ray\ntry: start_ray()\nexcept ValueError as error: print(error)"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("Ray did not start (OSError: "), done.stderr
    assert "ray stop" in done.stdout
