import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from pydantic import ValidationError

from unigrpo.recipe.load import RecipeError, load_rewards
from unigrpo.rewards.process import environments
from unigrpo.rewards.process.env_worker import source_folder
from unigrpo.rewards.process.environments import EnvError, interpreter_of
from unigrpo.rewards.runtime.isolation import Reply, outcomes_of
from unigrpo.rewards.runtime.process import RewardLoadError, RewardProcess
from unigrpo.settings.rewards import EnvSettings, RewardSettings

REWARD = """
import importlib.util, os, sys

OURS = ("numpy", "torch", "pydantic", "PIL", "ray")

def bare(completions, log_metric, **columns):
    leaked = [name for name in OURS if importlib.util.find_spec(name)]
    if leaked or any("site-packages" in entry and not entry.startswith(sys.prefix) for entry in sys.path):
        raise RuntimeError(f"{leaked} leak through {sys.path}")
    log_metric("is_own", os.environ["WANTED_PREFIX"] == sys.prefix)
    return [len(completion.split()) / 10 for completion in completions]

class Marked:
    range = (0.0, 3.0)

    def __init__(self, factor):
        import tiny_scorer
        self.factor = factor * tiny_scorer.FACTOR

    def __call__(self, *, completions, **columns):
        return [self.factor * ("x" in completion) for completion in completions]

def sizes(completions, **columns):
    return [1.0 for picture in completions]

def ours(completions, **columns):
    from unigrpo.rewards.base import Failed
    return [Failed("no") for _ in completions]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIGRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path / "home"


def quiet(_: str) -> None:
    """No one waits."""


def worker(folder: Path, name: str, env: dict[str, Any], **arguments: Any) -> RewardProcess:
    settings = RewardSettings(use=f"mine.py:{name}", arguments=arguments, env=EnvSettings(**env))
    process = RewardProcess(settings=settings, folder=folder, start_timeout_s=120.0)
    process.add("it", settings)
    return process


def call(one: RewardProcess, completions: list[Any]) -> Reply:
    columns = {"prompts": ["?"] * len(completions), "completions": completions}
    return outcomes_of(one.exchange({"reward": "it", "columns": columns, "step": 0}, timeout_s=60.0))


def values(one: RewardProcess, completions: list[Any]) -> list[float | None]:
    try:
        return [outcome.value for outcome in call(one, completions).outcomes]
    finally:
        one.close()


def wheel(folder: Path, factor: int) -> Path:
    """A package that installs without an index."""
    path = folder / "tiny_scorer-1.0-py3-none-any.whl"
    info = "tiny_scorer-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_scorer.py", f"FACTOR = {factor}\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny_scorer\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_reward_of_a_file_runs_under_a_bare_interpreter_that_sees_none_of_our_packages(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setenv("WANTED_PREFIX", str(tmp_path / "bare"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    one = worker(tmp_path, "bare", {"python": "bare/bin/python"})
    try:
        reply = call(one, ["a b c", "d"])
    finally:
        one.close()
    assert [outcome.value for outcome in reply.outcomes] == [0.3, 0.1]
    assert reply.metrics == {"is_own": 1.0}


def test_requirements_are_installed_once_and_the_class_is_made_there(home: Path, tmp_path: Path) -> None:
    env = {"requirements": ["--no-index", str(wheel(tmp_path, 3))]}
    assert values(worker(tmp_path, "Marked", env, factor=0.5), ["x", "y"]) == [1.5, 0.0]
    (built,) = (home / "envs").glob("*/installed.txt")
    assert built.read_text() == "tiny_scorer==1.0\n"
    first = built.stat().st_mtime_ns
    assert values(worker(tmp_path, "Marked", env, factor=1.0), ["x"]) == [3.0]
    assert [path.stat().st_mtime_ns for path in (home / "envs").glob("*/installed.txt")] == [first]


def test_a_build_that_fails_says_pips_last_lines_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    one = worker(tmp_path, "bare", {"requirements": ["--no-index", "there-is-no-such-scorer==1"]})
    with pytest.raises(RewardLoadError, match=r"(?s)reward 'it'.*could not be made.*No matching distribution found"):
        one.wait_until_loaded()
    assert [path for path in (home / "envs").iterdir() if path.suffix != ".lock"] == []


def test_an_unfinished_environment_is_built_anew(home: Path) -> None:
    env = EnvSettings(requirements=[])
    first = interpreter_of(env, folder=None, progress=quiet)
    (first.parents[1] / "installed.txt").unlink()
    (first.parents[1] / "half").touch()
    assert interpreter_of(env, folder=None, progress=quiet) == first
    assert not (first.parents[1] / "half").exists()
    assert (first.parents[1] / "installed.txt").is_file()


def test_the_same_requirements_in_another_order_are_one_environment(home: Path) -> None:
    built = {
        interpreter_of(EnvSettings(requirements=lines), folder=None, progress=quiet)
        for lines in (["--no-index", "# a note"], ["# a note", " --no-index ", "--no-index"])
    }
    assert len(built) == 1


def test_two_that_ask_at_once_build_one_environment_and_the_second_waits(home: Path) -> None:
    said: list[str] = []
    started, release = threading.Event(), threading.Event()

    def slowly(_: str) -> None:
        started.set()
        release.wait(30)

    found: list[Path] = []
    env = EnvSettings(requirements=["--no-index", "# a note"])
    first = threading.Thread(target=lambda: found.append(interpreter_of(env, folder=None, progress=slowly)))
    second = threading.Thread(target=lambda: found.append(interpreter_of(env, folder=None, progress=said.append)))
    first.start()
    assert started.wait(60)
    second.start()
    deadline_s = time.monotonic() + 30
    while not said and time.monotonic() < deadline_s:
        time.sleep(0.05)
    release.set()
    first.join(60)
    second.join(60)
    assert said[0] == "another process builds the environment"
    assert found[0] == found[1]
    assert len(list((home / "envs").glob("*/installed.txt"))) == 1


def test_a_silent_installer_is_alive_until_its_silence_is_too_long(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "_HEARTBEAT_S", 0.05)
    (tmp_path / "python").write_text("#!/bin/sh\nsleep 0.5; printf 'one\\ntwo'\n")
    (tmp_path / "python").chmod(0o755)
    said: list[str] = []
    assert environments._run([str(tmp_path / "python")], "python", said.append) == ["one", "two"]
    assert said[0] == "" and said[-2:] == ["one", "two"]
    monkeypatch.setattr(environments, "_MAX_SILENCE_S", 0.1)
    with pytest.raises(EnvError, match="`python` said nothing for 0 minutes and was ended"):
        environments._run([str(tmp_path / "python")], "python", quiet)


def test_closing_ends_a_build(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "endless"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "endless"\nbackend-path = ["."]\n'
        '[project]\nname = "endless"\nversion = "1"\n'
    )
    (source / "endless.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'started')!r}).touch()\ntime.sleep(600)\n"
    )
    one = worker(tmp_path, "bare", {"requirements": ["--no-index", str(source)]})
    others = set(psutil.Process().children(recursive=True))
    one.open()
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert (tmp_path / "started").exists()
    building = set(psutil.Process().children(recursive=True)) - others
    assert building
    one.close()
    _, alive = psutil.wait_procs(building, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_pictures_need_pillow_there_and_the_item_says_so(home: Path, tmp_path: Path) -> None:
    from unigrpo.rewards.runtime.isolation import ItemError

    one = worker(tmp_path, "sizes", {"requirements": []})
    with pytest.raises(ItemError, match=r"a picture was sent to an interpreter without pillow .*; add pillow to its"):
        values(one, [Image.new("RGB", (2, 2))])


def test_our_own_light_modules_can_be_imported_there(home: Path, tmp_path: Path) -> None:
    assert values(worker(tmp_path, "ours", {"requirements": []}), ["x"]) == [None]


def test_the_source_folder_holds_this_package_alone(home: Path) -> None:
    folder = source_folder()
    assert source_folder() == folder
    assert [entry.name for entry in folder.iterdir()] == ["unigrpo"]
    assert (folder / "unigrpo" / "rewards" / "process" / "worker.py").is_file()
    assert (folder / "unigrpo" / "types.py").is_file()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"python": "nowhere/python"}, "there is no interpreter .*nowhere/python"),
        ({"python": "old"}, r"old is Python 3\.9\.1; .* 3\.10 or newer"),
        ({"python": "odd"}, "does not run as Python"),
        ({"python": "ends"}, r"does not run as Python \(exit code 3\): no"),
        ({"requirements": [], "python_version": "3.99"}, r"there is no python3\.99 on the path"),
    ],
)
def test_an_interpreter_that_cannot_be_used_is_named(
    home: Path, tmp_path: Path, env: dict[str, Any], said: str
) -> None:
    for name, script in (("old", 'echo [[3, 9, 1], \\"p\\"]'), ("odd", "echo hello"), ("ends", "echo no >&2; exit 3")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(EnvError, match=said):
        interpreter_of(EnvSettings(**env), folder=tmp_path, progress=quiet)


def test_a_recipe_may_name_what_is_installed_there_alone_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "python").symlink_to(sys.executable)
    recipe = tmp_path / "rewards.yaml"
    recipe.write_text("rewards: {it: {use: 'only_there.scorer:Scorer', env: {python: own/python}}}\n")
    env = load_rewards(str(recipe))["it"].env
    assert env is not None and env.python == str(tmp_path / "own" / "python")
    recipe.write_text("rewards: {it: {use: 'only_there.scorer:Scorer'}}\n")
    with pytest.raises(RecipeError, match="only_there"):
        load_rewards(str(recipe))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "one of the two"),
        ({"python": "p", "requirements": []}, "one of the two"),
        ({"python": "p", "python_version": "3.11"}, "leave it out"),
        ({"requirements": [], "python_version": "3"}, "pattern"),
    ],
)
def test_an_env_is_one_of_two(env: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EnvSettings(**env)
