"""Signals end every command with one line, its exit code and no worker left; a run saves what it would lose."""

import json
import os
import signal

import psutil
import pytest
from small_run import comparable, write_small, write_supervised

from unigrpo.cli.app import run
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.checkpoint import latest_checkpoint
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.stopping import Stopped, stop_requests, stopped_by_signals
from unigrpo.train import train

KILLER = """
import os
from unigrpo.runs.trackers.base import Tracker


def _kill(*arguments, **options):
    os.kill(os.getpid(), int(os.environ["KILLER"]))


class Killer(Tracker):
    def __init__(self, at="step", name="", times=1):
        self.at, self.name, self.times = at, name, times

    def heard(self, method, what=""):
        if method == self.at and self.name in what:
            for _ in range(self.times):
                _kill()

    def phase(self, text):
        self.heard("phase", text)

    def step(self, metrics):
        self.heard("step")

    def samples(self, samples):
        self.heard("samples", samples.name)


class Source:
    num_prompts = None

    def __init__(self, split, seed):
        _kill()

    def __getitem__(self, index):
        raise IndexError(index)
"""
REWARD = """
import os

def kills(*, prompts, completions):
    os.kill(os.getppid(), int(os.environ["KILLER"]))
    return [0.0] * len(completions)
"""
NAMES = {"SIGTERM": "stopped by SIGTERM", "SIGHUP": "stopped by SIGHUP", "SIGINT": "interrupted"}


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    path = write_small(tmp_path_factory.mktemp("recipe"))
    (path.parent / "killer.py").write_text(KILLER)
    (path.parent / "kills.py").write_text(REWARD)
    write_supervised(path.parent, path.parent / "policy")
    return path


@pytest.fixture(params=sorted(NAMES))
def number(request, monkeypatch):
    found = signal.Signals[request.param]
    monkeypatch.setenv("KILLER", str(int(found)))
    return found


@pytest.fixture
def sigterm(monkeypatch):
    monkeypatch.setenv("KILLER", str(int(signal.SIGTERM)))


def killer(recipe_path, **arguments):
    use = ["jsonl", {"use": f"{recipe_path.parent / 'killer.py'}:Killer", **arguments}]
    return f"tracking.use={json.dumps(use)}"


def no_workers():
    return not any("rewards.process" in " ".join(child.cmdline()) for child in psutil.Process().children())


@pytest.mark.parametrize(
    "killed", [{"at": "phase", "name": "reading prompts"}, {"at": "samples", "name": "eval_before"}]
)
def test_a_run_without_a_result_leaves_nothing_and_says_to_give_the_command_again(
    recipe_path, tmp_path, sigterm, killed, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(recipe_path), killer(recipe_path, **killed)]) == 143
    out, err = capfd.readouterr()
    line = "stopped by SIGTERM before there was a result; nothing is left of it: give the same command again"
    assert out.splitlines()[-1] == line
    assert "Traceback" not in err
    assert list((tmp_path / "runs").iterdir()) == []
    assert no_workers()


def test_a_run_in_its_steps_saves_and_says_how_to_go_on(recipe_path, tmp_path, number, capfd):
    overrides = ["checkpoint.every=0", "evaluate.enabled=false", killer(recipe_path)]
    assert run(["train", str(recipe_path), *overrides, "--out", str(tmp_path / "run")]) == 128 + number
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"{NAMES[number.name]}; go on with: unigrpo resume {tmp_path / 'run'}"
    assert "Traceback" not in err
    assert latest_checkpoint(tmp_path / "run").step == 1
    assert no_workers()


def test_a_second_signal_does_not_wait_for_the_step(recipe_path, tmp_path, sigterm):
    overrides = ["checkpoint.every=0", "evaluate.enabled=false", killer(recipe_path, times=2)]
    assert run(["train", str(recipe_path), *overrides, "--out", str(tmp_path / "run")]) == 143
    assert latest_checkpoint(tmp_path / "run") is None
    assert len(read_metrics(tmp_path / "run")) == 1
    assert no_workers()


def test_an_evaluation_between_steps_is_not_waited_for_and_taken_up_again(recipe_path, tmp_path, monkeypatch):
    monkeypatch.setenv("KILLER", str(int(signal.SIGHUP)))
    overrides = ["evaluate.every=1", "checkpoint.every=0", "evaluate.num_prompts=2"]
    use = killer(recipe_path, at="samples", name="eval_step_000001")
    assert run(["train", str(recipe_path), *overrides, use, "--out", str(tmp_path / "run")]) == 129
    assert latest_checkpoint(tmp_path / "run").step == 1
    assert read_metrics(tmp_path / "run") == []
    assert run(["resume", str(tmp_path / "run"), "tracking.use=jsonl"]) == 0
    train(load_recipe(recipe_path, overrides), tmp_path / "whole")
    records = comparable(read_metrics(tmp_path / "run"))
    assert records == comparable(read_metrics(tmp_path / "whole"))
    assert ["eval/reason/reward" in record for record in records] == [True, True]


def test_the_last_evaluation_is_ended_at_once_and_only_it_is_done_again(recipe_path, tmp_path, sigterm, capfd):
    use = killer(recipe_path, at="samples", name="eval_after")
    assert run(["train", str(recipe_path), use, "--out", str(tmp_path / "run")]) == 143
    assert "go on with: unigrpo resume" in capfd.readouterr().out
    assert len(read_metrics(tmp_path / "run")) == 2
    assert latest_checkpoint(tmp_path / "run").step == 2
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run(["resume", str(tmp_path / "run"), "tracking.use=jsonl"]) == 0
    assert json.loads((tmp_path / "run" / "eval_after" / "metrics.json").read_text())["step"] == 2


def test_commands_without_a_run_say_to_give_them_again(recipe_path, tmp_path, sigterm, capfd):
    items = tmp_path / "items.jsonl"
    items.write_text('{"prompt": "1+1", "completion": "2"}\n')
    reward = f"{recipe_path.parent / 'kills.py'}:kills"
    line = "stopped by SIGTERM; nothing is half-written: give the same command again\n"
    for arguments in (
        ["score", reward, str(items), "--out", str(tmp_path / "scores")],
        ["eval", str(recipe_path), f"rewards.letters.use={reward}"],
        ["eval", str(recipe_path), f"tasks.reason.data.use={recipe_path.parent / 'killer.py'}:Source"],
    ):
        assert run(arguments) == 143
        err = capfd.readouterr().err
        assert err.endswith(line)
        assert "Traceback" not in err
    assert not (tmp_path / "scores").exists()
    assert no_workers()


def test_a_supervised_run_saves_at_a_hang_up_and_goes_on(recipe_path, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("KILLER", str(int(signal.SIGHUP)))
    recipe = recipe_path.parent / "stage.yaml"
    assert run(["sft", str(recipe), killer(recipe_path), "--out", str(tmp_path / "run")]) == 129
    assert "stopped by SIGHUP; go on with: unigrpo resume" in capfd.readouterr().out
    assert latest_checkpoint(tmp_path / "run").step == 1
    assert run(["resume", str(tmp_path / "run"), "tracking.use=jsonl"]) == 0
    assert len(read_metrics(tmp_path / "run")) == 3


def test_a_second_signal_outside_of_steps_ends_the_process_with_its_code():
    child = os.fork()
    if not child:
        with stopped_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Stopped:
                os.kill(os.getpid(), signal.SIGHUP)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP


def test_a_hang_up_that_is_ignored_stays_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals(), stop_requests(lambda: True) as is_asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not is_asked()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stopped_by_signals(), stop_requests(lambda: False):
        assert signal.getsignal(signal.SIGTERM) not in handlers
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
