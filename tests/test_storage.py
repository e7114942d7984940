"""A full, read-only or failing disk is one line and exit code 2; what is optional is left out, a save is retried."""

import errno
import fcntl
import json
import logging
import os
import resource
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from small_run import comparable, write_small, write_supervised

from unigrpo.cli.app import run
from unigrpo.errors import StorageError, UserError
from unigrpo.files import shown_bytes, storage_error, sweep, write_atomically
from unigrpo.models.files.weights import write_tensors
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.checkpoint import Saves, latest_checkpoint, save_checkpoint
from unigrpo.runs.directory import new_run
from unigrpo.runs.lock import locked
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.trackers.terminal import Terminal
from unigrpo.settings.runs import CheckpointSettings, TrackerChoice
from unigrpo.train import resume, train

LIMITED = """
import resource
from unigrpo.runs.trackers.base import Tracker


class Limits(Tracker):
    def __init__(self, num_bytes, at=1, until=99):
        self.num_bytes, self.at, self.until = num_bytes, at, until

    def step(self, metrics):
        limit = self.num_bytes if self.at <= metrics["step"] < self.until else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
"""


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    path = write_small(tmp_path_factory.mktemp("recipe"))
    (path.parent / "limits.py").write_text(LIMITED)
    return path


@pytest.fixture(autouse=True)
def whole_disk():
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def full_disk(num_bytes):
    """No file grows beyond a size: the system's own refusal, EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def limits(recipe_path, *others, **arguments):
    """Every file is limited from a step on, up to another."""
    use = ["jsonl", *others, {"use": f"{recipe_path.parent / 'limits.py'}:Limits", **arguments}]
    return f"tracking.use={json.dumps(use)}"


def test_a_write_that_finds_no_room_names_the_path_and_the_room(tmp_path):
    with full_disk(100), pytest.raises(StorageError, match=r"a\.txt: file too large \(5 kB needed, .* free") as found:
        write_atomically(tmp_path / "a.txt", "x" * 5000)
    assert found.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
    with full_disk(100), pytest.raises(OSError, match="too large") as system:
        write_tensors({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    assert system.value.errno == errno.EFBIG
    full = storage_error(tmp_path / "b", OSError(errno.ENOSPC, "No space left on device"), 12_300_000)
    assert str(full).startswith(f"{tmp_path / 'b'}: no space left on device (12 MB needed, ")
    assert str(storage_error(Path("b"), OSError(errno.EROFS, "Read-only file system"))) == "b: read-only file system"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (3400, "3.4 kB"), (12_000_000, "12 MB"), (21e9, "21 GB")]
)
def test_a_size_reads_as_people_say_it(size, text):
    assert shown_bytes(int(size)) == text


@pytest.mark.parametrize("limit", [0, 900])
def test_a_new_run_on_a_full_disk_is_one_line_and_leaves_nothing(recipe_path, tmp_path, limit, capsys):
    with full_disk(limit):
        code = run(["train", str(recipe_path), "evaluate.enabled=false", "--out", str(tmp_path / "run")])
    assert code == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}")
    assert "file too large" in err
    assert "Traceback" not in err
    assert list((tmp_path / "run").iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_is_done_and_resume_ends_as_if_it_had_not(recipe_path, tmp_path, capsys):
    plain = ["evaluate.enabled=false", "num_steps=3"]
    use = limits(recipe_path, num_bytes=1)
    assert run(["train", str(recipe_path), *plain, use, "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith(f"with: unigrpo resume {tmp_path / 'run'}")
    assert "rewards/step_000002" in err.splitlines()[-1]
    assert len(err.splitlines()[-1]) < 300
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resume(tmp_path / "run", overrides=["tracking.use=jsonl"])
    train(load_recipe(recipe_path, plain), tmp_path / "whole")
    assert comparable(read_metrics(tmp_path / "run")) == comparable(read_metrics(tmp_path / "whole"))


def test_a_checkpoint_that_finds_no_room_is_tried_again_after_the_next_step(recipe_path, tmp_path, caplog):
    use = limits(recipe_path, num_bytes=20_000, at=1, until=2)
    overrides = ["evaluate.enabled=false", "num_steps=3", "checkpoint.every=2", use]
    with caplog.at_level(logging.WARNING):
        train(load_recipe(recipe_path, [*overrides, "checkpoint.every=1"]), tmp_path / "run")
    (said,) = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert "again after the next step (failure 1, checkpoint.max_failed_saves=3 are borne)" in said
    assert f"{tmp_path / 'run' / 'checkpoints' / 'step_000001'}: file too large (" in said
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_000002", "step_000003"]


def test_saves_that_fail_stop_the_run_when_their_budget_is_spent(recipe_path, tmp_path, capsys):
    use = limits(recipe_path, num_bytes=20_000)
    overrides = ["evaluate.enabled=false", "num_steps=9", "checkpoint.max_failed_saves=1", use]
    assert run(["train", str(recipe_path), *overrides, "--out", str(tmp_path / "run")]) == 2
    assert "checkpoints/step_000002: file too large" in capsys.readouterr().err.splitlines()[-1]
    assert len(read_metrics(tmp_path / "run")) == 2


def test_a_last_save_is_tried_again_at_once_and_no_other_error_is_borne(tmp_path):
    saves, tried = Saves(CheckpointSettings(every=5, max_failed_saves=2)), []

    def fails_twice():
        tried.append(len(tried))
        if len(tried) < 3:
            raise storage_error(tmp_path, OSError(errno.EIO, os.strerror(errno.EIO)))

    assert [saves.is_due(step) for step in (4, 5, 6)] == [False, True, False]
    saves.save(fails_twice, is_last=True)
    assert len(tried) == 3
    with pytest.raises(StorageError):
        saves.save(lambda: tried.clear() or fails_twice(), is_last=True)
    assert saves.is_due(6)
    with pytest.raises(ZeroDivisionError):
        saves.save(lambda: 1 // 0, is_last=False)


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path):
    def write(folder):
        write_tensors({"a": torch.zeros(5000)}, folder / "a.safetensors")

    save_checkpoint(tmp_path, 1, {}, write, 3)
    with full_disk(4000), pytest.raises(StorageError, match=r"step_000002: file too large \(60 kB needed"):
        save_checkpoint(tmp_path, 2, {}, write, 3, 60_000)
    assert latest_checkpoint(tmp_path).step == 1


def test_what_is_optional_is_given_up_with_one_warning_each(recipe_path, tmp_path, caplog, capfd):
    sizes = ["num_steps=4", "tracking.rollouts_every=1", "tasks.reason.prompts_per_step=12"]
    use = limits(recipe_path, "tensorboard", num_bytes=9_000, until=4)
    recipe = load_recipe(recipe_path, ["evaluate.enabled=false", "checkpoint.every=0", *sizes, use])
    with caplog.at_level(logging.WARNING):
        train(recipe, tmp_path / "run")
    said = [record.getMessage() for record in caplog.records]
    assert sum("samples were not written" in line for line in said) == 1
    assert len(read_metrics(tmp_path / "run")) == 4
    assert "Traceback" not in capfd.readouterr().err


def test_curves_that_find_no_room_are_given_up_without_a_traceback(tmp_path, caplog, capfd):
    from unigrpo.runs.trackers.base import Trackers

    trackers = Trackers([TrackerChoice(use="jsonl"), TrackerChoice(use="tensorboard")])
    trackers.start(load_recipe("quickstart"), tmp_path, 0)
    with full_disk(400), caplog.at_level(logging.WARNING):
        for step in range(1, 4):
            trackers.step({"step": step, **{f"a{number}": 1.0 for number in range(8)}})
        trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard failed (OSError: [Errno 27] File too large); the run goes on without it"
    ]
    assert len(read_metrics(tmp_path)) == 3
    assert "Traceback" not in capfd.readouterr().err


def test_output_that_nobody_reads_costs_a_run_one_warning(monkeypatch, caplog):
    reading, writing = os.pipe()
    os.close(reading)
    pipe = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", pipe)
    with caplog.at_level(logging.WARNING):
        terminal = Terminal(is_live=False)
        terminal.phase("training")
        terminal.step({"step": 1, "reward": 0.5})
        terminal.done({"status": "finished", "wall_s": 1})
        terminal.close()
    monkeypatch.undo()
    with suppress(BrokenPipeError):
        pipe.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the output is gone (broken pipe); the run goes on without it"
    ]


def test_a_command_whose_reader_has_ended_ends_without_a_word(tmp_path):
    for arguments in (["check", "quickstart"], ["--help"]):
        command = f"{sys.executable} -m unigrpo {' '.join(arguments)}"
        shell = f"{{ {command}; echo $? > code; }} 2> errors | true"
        subprocess.run(
            ["bash", "-c", f"sleep 0; {shell}"], cwd=tmp_path, check=False, env={**os.environ, "COLUMNS": "80"}
        )
        assert (tmp_path / "errors").read_text() == ""
        assert (tmp_path / "code").read_text().strip() in ("141", "0")


def test_output_onto_a_full_disk_is_one_line(capfd):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m unigrpo --version > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output or a file that was open: no space left on device")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_folder_that_cannot_be_locked_says_why_and_the_way_out(recipe_path, tmp_path, number, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    arguments = [str(recipe_path), "evaluate.enabled=false", "num_steps=1", "--out", str(tmp_path / "run")]
    assert run(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'run'} cannot be locked ({os.strerror(number).lower()})" in line
    assert "--no-lock" in line
    if number == errno.ENOLCK:
        assert run(["train", *arguments, "--no-lock"]) == 0
        assert run(["resume", str(tmp_path / "run"), "num_steps=2"]) == 2
        assert run(["resume", str(tmp_path / "run"), "num_steps=2", "--no-lock"]) == 0
        stage = write_supervised(tmp_path, recipe_path.parent / "policy")
        assert run(["sft", str(stage), "--out", str(tmp_path / "stage")]) == 2
        assert run(["sft", str(stage), "--out", str(tmp_path / "stage"), "--no-lock"]) == 0


def test_of_two_runs_that_want_one_folder_the_loser_is_told_who_works_there(recipe_path, tmp_path):
    recipe = load_recipe(recipe_path)
    with new_run(recipe, tmp_path / "run"):
        with pytest.raises(UserError, match=rf"process {os.getpid()} works in .* give another --out") as found:
            train(recipe, tmp_path / "run")
        assert "resume" not in str(found.value)
        assert run(["train", str(recipe_path), "--out", str(tmp_path / "run")]) == 2
        assert (tmp_path / "run" / "recipe.yaml").exists()
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("what", ["folder", "fifo", "link"])
def test_a_lock_file_that_is_none_is_one_message(tmp_path, what):
    path = tmp_path / ".lock"
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(tmp_path / "x")}[what]()
    with pytest.raises(UserError, match=r"\.lock.*remove it to go on"), locked(tmp_path):
        pass


def test_files_of_killed_processes_are_swept_and_those_of_living_ones_are_not(tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    (tmp_path / "eval_before").mkdir()
    gone = [f".summary.json.{done.pid}-0123456789ab", f"eval_before/.scores.jsonl.{done.pid}"]
    gone += [f".metrics.jsonl.{os.getpid()}-0123456789ab", ".report.html.0123456789ab"]
    kept = [".lock", ".report.html.1-0123456789ab", "summary.json", ".gitignore", "eval_before/.x.y"]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("x")
    assert sorted(str(path.relative_to(tmp_path)) for path in sweep(tmp_path)) == sorted(gone)
    assert all((tmp_path / name).exists() for name in kept)


def test_a_resumed_run_has_no_leftovers_of_the_killed_one(recipe_path, tmp_path):
    run_dir = tmp_path / "run"
    train(load_recipe(recipe_path, ["num_steps=1", "evaluate.enabled=false"]), run_dir)
    code = "import os, sys; from unigrpo.files import replacing; from pathlib import Path\n"
    code += "with replacing(Path(sys.argv[1])) as file:\n    file.write_text('x')\n    os.kill(os.getpid(), 9)\n"
    subprocess.run([sys.executable, "-c", code, run_dir / "summary.json"], check=False)
    (run_dir / "checkpoints" / ".writing-000002").mkdir()
    assert len(list(run_dir.glob(".summary.json.*"))) == 1
    resume(run_dir, overrides=["num_steps=2"])
    assert [path.name for path in run_dir.rglob(".*") if path.name != ".lock"] == []
