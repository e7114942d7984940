import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from small_run import write_small

from unigrpo.cli.app import run
from unigrpo.cli.arguments import new_directory
from unigrpo.errors import UserError
from unigrpo.plugin import resolve

Write = Callable[[dict[str, Any]], Path]
COMMANDS = ("train", "sft", "resume", "check", "sample", "eval", "score", "report", "export")


def _program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CI": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "unigrpo", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_lists_the_commands_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    from unigrpo import __version__

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"unigrpo {__version__}\n"


def test_check_shows_the_arithmetic(
    recipe_values: dict[str, Any], write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(write_recipe(recipe_values)), "group_size=2"]) == 0
    text = capsys.readouterr().out
    assert "4 prompts x group of 2" in text
    assert "can run" in text


def test_bad_recipe_is_one_short_message_and_exit_code_2_with_nothing_written(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    path = write_recipe(recipe_values)
    before = sorted(tmp_path.rglob("*"))
    for arguments in (["check", str(path)], ["train", str(path), "--out", str(tmp_path / "run")]):
        done = _program(*arguments, "learner.lrr=1", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == f"error: {path}: learner.lrr: unknown key; did you mean `lr`?\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback_of_a_mendable_error(tmp_path: Path) -> None:
    done = _program("check", "no-such-recipe", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RecipeError" in done.stderr


@pytest.mark.parametrize("arguments", [["train"], ["no-such-command"], ["report"], ["sample", "x", "--task", "paint"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(arguments) == 2


@pytest.mark.parametrize("command", ["resume", "report", "export", "eval"])
def test_folder_without_a_run_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--out", str(tmp_path / "out")] if command == "export" else []
    assert run([command, str(tmp_path), *extra]) == 2
    assert "holds no run: there is no recipe.yaml in it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_a_directory_that_holds_something(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "metrics.jsonl").write_text('{"step": 1}\n')
    assert run(["train", str(write_recipe(recipe_values)), "--out", str(used)]) == 2
    assert "runs never share a directory" in capsys.readouterr().err
    assert (used / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_default_directory_is_made_under_the_first_free_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_directory(None, "quickstart", 7) == Path("runs/quickstart-7-1")
    assert new_directory(None, "quickstart", 7) == Path("runs/quickstart-7-2")
    assert new_directory(tmp_path / "runs" / "quickstart-7-1", "quickstart", 7).name == "quickstart-7-1"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        new_directory(tmp_path / "file", "quickstart", 7)


def test_commands_that_start_at_once_have_a_directory_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        places = list(threads.map(lambda _: new_directory(None, "x", 0), range(24)))
    assert sorted(places) == sorted(Path(f"runs/x-0-{number}") for number in range(1, 25))


@pytest.mark.parametrize("error", [ValueError("shapes differ"), RuntimeError("size mismatch"), OSError(5, "broken")])
def test_error_that_is_a_bug_keeps_its_traceback_and_says_where_to_report_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("unigrpo.cli.app.app", failing)
    with pytest.raises(type(error)) as found:
        run(["check", "x"])
    (note,) = found.value.__notes__
    assert f"a bug, of unigrpo {version('unigrpo')}" in note
    assert "report it" in note


def test_bug_in_a_run_is_exit_code_1_and_names_the_run_directory(tmp_path: Path) -> None:
    script = (
        "import sys, unigrpo.train\n"
        "from unigrpo.cli.app import run\n"
        "unigrpo.train.train_step = lambda run: 1 // 0\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    arguments = ["train", str(write_small(tmp_path)), "evaluate.enabled=false", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert f"The run directory is {tmp_path / 'run'}\nThis is a bug" in done.stderr


def test_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unigrpo.cli.app.app", interrupted)
    assert run(["check", "x"]) == 130


@pytest.mark.parametrize(
    "name",
    [
        "unigrpo.learner.learner:LearnerStoppedError",
        "unigrpo.pictures:PictureError",
        "unigrpo.scoring.items:PictureRefusedError",
        "unigrpo.rewards.runtime.isolation:RewardOutageError",
        "unigrpo.rewards.runtime.process:RewardLoadError",
        "unigrpo.rewards.runtime.table:RewardFailedError",
        "unigrpo.rewards.runtime.cache:RewardCacheError",
        "unigrpo.rewards.process.environments:EnvError",
        "unigrpo.rollouts.base:RolloutDeadlineError",
        "unigrpo.rollouts.base:RolloutActorsLostError",
    ],
)
def test_failure_that_is_worded_for_the_user_is_a_user_error(name: str) -> None:
    assert issubclass(resolve(name), UserError)  # type: ignore[arg-type]


WRONG = {
    "no recipe": (["train", "{tmp}/none.yaml"], "there is no such file"),
    "a folder as recipe": (["check", "{tmp}"], "there is no such file"),
    "no policy": (["train", "quickstart", "policy.path={tmp}/none"], "policy.path"),
    "no data": (["check", "quickstart", "tasks.reason.data={jsonl: {tmp}/none.jsonl}"], "none.jsonl"),
    "out under a file": (["train", "quickstart", "--out", "{tmp}/file/run"], "not a directory"),
    "sample without a model": (["sample", "{tmp}/none", "--task", "reason", "--prompt", "x"], "there is no folder"),
    "sample of a folder": (["sample", "{tmp}", "--task", "reason", "--prompt", "x"], "config.json"),
    "unknown asset": (["sample", "asset:none", "--task", "reason", "--prompt", "x"], "no asset 'none'"),
    "a picture that is none": (
        (
            "sample asset:tiny_policy --task understand --prompt x --image {tmp}/file --image-size 64 "
            "--image-tokenizer asset:tiny_magvit"
        ).split(),
        "file",
    ),
    "score of no file": (["score", "quickstart", "{tmp}/none.jsonl"], "none.jsonl"),
    "score without columns": (["score", "quickstart", "{tmp}/columns.jsonl"], "columns.jsonl"),
    "report of no run": (["report", "{tmp}/none"], "holds no run"),
    "report under a file": (["report", "{tmp}/none", "--out", "{tmp}/file/x.html"], "holds no run"),
    "export of no run": (["export", "{tmp}/none", "--out", "{tmp}/out"], "holds no run"),
    "inspect of nothing": (["inspect", "{tmp}/none"], "there is no folder"),
    "tiny of no family": (["make-tiny", "llamma", "{tmp}/tiny"], "llamma"),
    "tiny under a file": (["make-tiny", "llada", "{tmp}/file/tiny"], "{tmp}/file"),
    "sft of a training recipe": (["sft", "quickstart"], "unigrpo train"),
    "resume of nothing": (["resume", "{tmp}/none"], "holds no run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_message_that_names_it(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a picture")
    (tmp_path / "columns.jsonl").write_text('{"x": 1}\n')
    arguments, wanted = WRONG[case]
    wanted = wanted.replace("{tmp}", str(tmp_path))
    assert run([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert wanted in error.lower() or wanted in error
    assert error.startswith("error: ")


@pytest.mark.parametrize(("command", "wanted"), [("train", "`unigrpo sft` runs it"), ("eval", "`unigrpo sft` runs it")])
def test_supervised_recipe_is_sent_to_its_command(
    command: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sft.yaml").write_text("name: x\nlr: 1e-3\nlog_every: 5\nmin_mask_ratio: 0.1\n")
    assert run([command, str(tmp_path / "sft.yaml")]) == 2
    error = capsys.readouterr().err
    assert wanted in error
    assert error.count("\n") == 1


def test_training_recipe_is_sent_to_its_command(
    recipe_values: dict[str, Any], write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sft", str(write_recipe(recipe_values))]) == 2
    error = capsys.readouterr().err
    assert "`unigrpo train` runs it" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["eval", "export"])
def test_supervised_run_is_neither_scored_nor_exported(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nlr: 1e-3\n")
    extra = ["--out", str(tmp_path / "out")] if command == "export" else []
    assert run([command, str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} is a run of `unigrpo sft`" in error
    assert f"{tmp_path / 'policy'} is its whole checkpoint" in error
