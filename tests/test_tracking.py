"""Trackers: each keeps what it hears, one more is one file, and one that fails does not end the run."""

import json
import logging
import os
import pickle
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_rollouts import rollout

from unigrpo import plugin
from unigrpo.errors import RecipeError, UserError
from unigrpo.recipe.load import load_recipe
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.trackers.base import Samples, Tracker, Trackers, public_config
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.runs import TrackerChoice
from unigrpo.train import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TRACKER = """
import json
from unigrpo.runs.trackers.base import Tracker


class Notes(Tracker):
    def __init__(self, name="notes"):
        self.name = name

    def start(self, recipe, run_dir, resumed_step):
        self.path = run_dir / f"{self.name}.txt"
        self.note("start", resumed_step)

    def note(self, *heard):
        with self.path.open("a") as file:
            file.write(json.dumps(heard) + chr(10))

    def step(self, metrics):
        on_disk = (self.path.parent / "metrics.jsonl").read_text().splitlines()
        self.note("step", metrics["step"], len(on_disk))

    def samples(self, samples):
        self.note("samples", samples.name, samples.step, len(samples.rows))

    def done(self, summary):
        self.note("done", summary["num_steps"])

    def close(self):
        self.note("close")
"""


def small(*use: Any) -> Recipe:
    """Two steps of the tiny policy's sums, with `jsonl` and those trackers."""
    overrides = ["num_steps=2", "group_size=2", "tasks.reason.prompts_per_step=2", "evaluate.enabled=false"]
    tracking = [f"tracking.use={json.dumps(['jsonl', *use])}", "tracking.rollouts_every=2"]
    recipe = load_recipe("quickstart", [*overrides, *tracking])
    parts = {"tasks": {"reason": recipe.tasks["reason"]}, "rewards": {"format": recipe.rewards["format"]}}
    reward = parts["rewards"]["format"].model_copy(update={"tasks": ["reason"]})
    evaluate = recipe.evaluate.model_copy(update={"accuracy": {}})
    return recipe.model_copy(update=parts | {"rewards": {"format": reward}, "evaluate": evaluate})


HEARD = [["start", 0], ["step", 1, 1], ["samples", "rollouts", 2, 4], ["step", 2, 2], ["done", 2], ["close"]]


def notes(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_in_the_folder_is_a_tracker(tmp_path: Path) -> None:
    file = Path(plugin.known_choices("unigrpo.runs.trackers")["jsonl"]).parent / "throw_away.py"
    file.write_text(TRACKER)
    try:
        train(small({"use": "throw_away", "name": "mine"}), tmp_path / "run")
    finally:
        file.unlink()
        sys.modules.pop("unigrpo.runs.trackers.throw_away", None)
    assert notes(tmp_path / "run" / "mine.txt") == HEARD


def test_a_users_file_is_a_tracker_and_hears_of_a_resumption(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TRACKER)
    train(small(f"{tmp_path / 'mine.py'}:Notes"), tmp_path / "run")
    assert notes(tmp_path / "run" / "notes.txt") == HEARD
    (tmp_path / "run" / "summary.json").unlink()
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace("num_steps: 2", "num_steps: 3"))
    resume(tmp_path / "run")
    assert notes(tmp_path / "run" / "notes.txt")[len(HEARD) :] == [["start", 2], ["step", 3, 3], ["done", 3], ["close"]]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (["tensorboard"], "wanted jsonl once, as the first of use: resuming and the report read metrics.jsonl"),
        (["tensorboard", "jsonl"], "wanted jsonl once, as the first"),
        (["jsonl", "wandbb"], "there is no 'wandbb'; did you mean 'wandb'?"),
        (
            ["jsonl", {"use": "wandb", "projct": "x"}],
            "projct: wandb takes no such argument; did you mean 'project'?; it takes: entity, group",
        ),
    ],
)
def test_wrong_trackers_are_found_without_running_them(use: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=r"tracking") as found:
        load_recipe("quickstart", [f"tracking.use={json.dumps(use)}"])
    assert message in str(found.value)


def test_a_tracker_whose_package_is_missing_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "theirs.py"
    file.write_text("class Theirs:\n    needed = 'no_such_package'\n")
    with pytest.raises(RecipeError, match=r"use.1: .*Theirs needs the package no_such_package, which is not there"):
        load_recipe("quickstart", [f"tracking.use=[jsonl, '{file}:Theirs']"])


def test_what_is_no_tracker_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("class Other:\n    pass\n")
    with pytest.raises(UserError, match="Other is no tracker; derive it from"):
        Trackers([TrackerChoice(use=f"{tmp_path / 'other.py'}:Other")])


class Broken(Tracker):
    failures = (ConnectionError,)

    def step(self, metrics: Any) -> None:
        raise ConnectionError("no route for sk-secret-0123")


def test_tracker_that_fails_costs_one_warning_and_shows_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "sk-secret-0123")
    trackers = Trackers([TrackerChoice(use="jsonl")], Broken())
    trackers.start(small(), tmp_path, 0)
    with caplog.at_level(logging.WARNING):
        trackers.step({"step": 1})
        trackers.step({"step": 2})
    trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed (ConnectionError: no route for ***); the run goes on without it"
    ]
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_error_that_a_tracker_does_not_call_its_own_ends_the_run() -> None:
    class Wrong(Tracker):
        def step(self, metrics: Any) -> None:
            raise KeyError("x")

    with pytest.raises(KeyError):
        Trackers([], Wrong()).step({"step": 1})


def test_alarm_is_told_when_it_is_set_and_not_while_it_stays() -> None:
    class Told(Tracker):
        def __init__(self) -> None:
            self.alarms: list[tuple[int, str]] = []

        def alarm(self, step: int, name: str) -> None:
            self.alarms.append((step, name))

    told = Told()
    trackers = Trackers([], told)
    for step, is_on in enumerate([0, 1, 1, 0, 1], start=1):
        trackers.step({"step": step, "alarm/saturation": float(is_on), "alarm/saturation/reward": 1.0})
    assert told.alarms == [(2, "saturation"), (5, "saturation")]


def test_keys_in_a_recipe_do_not_leave_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    recipe = small()
    reward = recipe.rewards["format"].model_copy(
        update={"arguments": {"api_key": "x", "api_key_env": "NAME", "url": "http://hf_0123456789@host"}}
    )
    sent = public_config(recipe.model_copy(update={"rewards": {"format": reward}}))
    assert sent["rewards"]["format"]["arguments"] == {"api_key": "***", "api_key_env": "NAME", "url": "http://***@host"}


# What each keeps


def play(choice: TrackerChoice, recipe: Recipe, run_dir: Path, samples: Samples) -> None:
    """Tell a tracker a run of two steps."""
    tracker = plugin.make(choice)
    tracker.start(recipe, run_dir, 0)
    tracker.step({"step": 1, "reward": 0.5, "kl": None, "ratio_mean": float("nan"), "status": "ok"})
    tracker.samples(samples)
    tracker.alarm(1, "saturation")
    tracker.step({"step": 2, "reward": 0.75})
    tracker.done({"num_steps": 2, "eval_after": {"eval/imagine/reward": 0.9}, "status": "finished"})
    tracker.close()
    tracker.close()


@pytest.fixture
def samples() -> Samples:
    """Two pictures from captions, the second without a reward."""
    table = RewardTable(
        names=("scene",),
        values=np.array([[0.5], [np.nan]]),
        status=np.array([[RewardStatus.OK], [RewardStatus.NOT_APPLICABLE]], dtype=np.int8),
        weights=np.ones(1),
        ranges=((0.0, 1.0),),
    )
    picture = np.full((8, 8, 3), 200, dtype=np.uint8)
    rollouts = [rollout(None, number=number, image=picture, task="imagine") for number in range(2)]
    return Samples(name="rollouts", step=1, rows=[(one, table, row) for row, one in enumerate(rollouts)])


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_the_finite_numbers_under_their_own_names(tmp_path: Path, samples: Samples) -> None:
    play(TrackerChoice(use="tensorboard"), small(), tmp_path, samples)
    assert scalars(tmp_path / "tensorboard") == {"reward": [(1, 0.5), (2, 0.75)]}


def test_tensorboard_hides_events_after_the_resumed_step(tmp_path: Path) -> None:
    for resumed_step, steps in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (2, {3: 0.9})):
        board = plugin.make(TrackerChoice(use="tensorboard"))
        board.start(small(), tmp_path, resumed_step)
        for step, reward in steps.items():
            board.step({"step": step, "reward": reward})
        board.close()
    assert scalars(tmp_path / "tensorboard")["reward"] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_jsonl_keeps_samples_with_their_pictures(tmp_path: Path, samples: Samples) -> None:
    play(TrackerChoice(use="jsonl"), small(), tmp_path, samples)
    lines = (tmp_path / "rollouts" / "step_000001.jsonl").read_text().splitlines()
    assert [json.loads(line)["rewards"]["scene"] for line in lines] == [0.5, None]
    assert [path.name for path in sorted((tmp_path / "rollouts").glob("*.png"))] == [
        "step_000001_000.png",
        "step_000001_001.png",
    ]


def test_report_is_written_by_the_function_that_is_named(tmp_path: Path, samples: Samples) -> None:
    (tmp_path / "pages.py").write_text("def write(run_dirs, out):\n    out.write_text(run_dirs[0].name)\n")
    choice = TrackerChoice.model_validate({"use": "report", "writer": f"{tmp_path / 'pages.py'}:write"})
    play(choice, small(), tmp_path, samples)
    assert (tmp_path / "report.html").read_text() == tmp_path.name


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_metrics_samples_and_the_recipe_offline(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    choice = TrackerChoice.model_validate({"use": "wandb", "project": "tests"})
    play(choice, small(), tmp_path, samples)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    names = (b"reward", b"samples/rollouts", b"alarm/saturation", b"eval/imagine/reward", b"group_size")
    deadline = time.monotonic() + 60  # the file is written by a process of wandb's own
    while not all(name in log.read_bytes() for name in names) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = log.read_bytes()
    for wanted in names:
        assert wanted in found, wanted
    assert b"k" * 40 not in found
    staged = [path for path in (tmp_path / "staged").rglob("*") if path.is_file()]
    assert any(path.read_bytes().startswith(b"\x89PNG") for path in staged)
    assert (tmp_path / "wandb.id").read_text() in log.name
    assert not list(tmp_path.glob("wandb/**/*.safetensors"))


@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_metrics_samples_and_the_recipe_in_its_folder(tmp_path: Path, samples: Samples) -> None:
    script = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from test_tracking import play\n"
        "play(*pickle.loads(sys.stdin.buffer.read()))\n"
    )
    choice = TrackerChoice.model_validate({"use": "trackio", "project": "tests"})
    folder = tmp_path / "trackio"
    environment = {**os.environ, "TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((choice, small(), tmp_path, samples)),
        env=environment,
        check=True,
        timeout=120,
    )
    (database,) = folder.glob("tests*.db")
    with sqlite3.connect(database) as connection:
        rows = [
            (step, json.loads(metrics)) for step, metrics in connection.execute("SELECT step, metrics FROM metrics")
        ]
    assert [(step, row["reward"]) for step, row in rows if "reward" in row] == [(1, 0.5), (2, 0.75)]
    (table,) = [row["samples/rollouts"] for _, row in rows if "samples/rollouts" in row]
    assert [line["scene"] for line in table["_value"]] == [0.5, None]
    assert [row for _, row in rows if row.get("summary/eval_after/eval/imagine/reward") == 0.9]
    assert len(list(folder.rglob("*.png"))) == 2
