"""A server that a judge starts: it answers, says why it did not, and never outlives the run."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from unigrpo.rewards.judge import Judge
from unigrpo.rewards.judging import judge_guard, judge_launch
from unigrpo.rewards.judging.judge_launch import LaunchedServer, LaunchError, launch_of
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings

SERVER = Path(__file__).parent / "model_server.py"


def launch(tmp_path: Path, mode: str = "plain", **given: Any) -> dict[str, Any]:
    command = [sys.executable, str(SERVER), "{port}", mode]
    return {"command": command, "log": str(tmp_path / "log"), "start_timeout_s": 20.0} | given


def facts(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "log").read_text().splitlines()[0])


def processes(tmp_path: Path) -> list[psutil.Process]:
    found = [psutil.Process(pid) for pid in facts(tmp_path)["pids"]]
    assert all(process.is_running() for process in found)
    return found


def assert_gone(gone: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(gone, timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_judge_starts_its_server_asks_it_and_stops_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="unigrpo")
    judge = Judge(rubric="Good?", launch=launch(tmp_path, gpus=[1, 2]))
    started = processes(tmp_path)
    try:
        assert judge(prompts=["?"], completions=["text"]) == [0.75]
        assert facts(tmp_path)["gpus"] == "1,2"
        assert "tiny-judge is ready" in caplog.text
    finally:
        judge.close()
    assert_gone(started)
    judge.close()


def test_a_server_with_health_alone_is_taken_by_the_name_given(tmp_path: Path) -> None:
    server = LaunchedServer(launch_of(launch(tmp_path, "health", model="mine")))
    assert server.model == "mine"
    server.close()


def test_the_server_and_its_processes_end_with_the_reward_pool(tmp_path: Path) -> None:
    settings = RewardSettings(
        use="unigrpo.rewards.judge:Judge", arguments={"rubric": "Good?", "launch": launch(tmp_path)}
    )
    with RewardPool({"judge": settings}) as pool:
        pool.wait_until_loaded()
        started = processes(tmp_path)
        assert facts(tmp_path)["own"] == []  # What a worker is told about threads and paths is not the server's.
    assert_gone(started)


def test_the_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    order = launch(tmp_path)
    code = (
        "import json, sys, time; from unigrpo.rewards.judging.judge_launch import LaunchedServer, launch_of\n"
        "server = LaunchedServer(launch_of(json.loads(sys.argv[1]))); print('ready', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, json.dumps(order)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        started = processes(tmp_path)
        owner.kill()
    assert_gone(started)


def test_a_server_that_ignores_the_first_signal_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import judge_guard\n"
        "judge_guard.GRACE_S = 0.3; judge_guard.guard(sys.argv[1:])"
    )
    port = str(judge_launch._free_port())
    folder = str(Path(judge_guard.__file__).parent)
    command = [sys.executable, "-c", code, folder, sys.executable, "-u", str(SERVER), port, "stubborn"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guard:
        assert guard.stdin is not None
        assert guard.stdout is not None
        started = [psutil.Process(pid) for pid in json.loads(guard.stdout.readline())["pids"]]
        guard.stdin.close()
        assert_gone(started)


def test_a_server_that_ends_shows_the_last_twenty_lines(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="ended with code 1") as caught:
        Judge(rubric="Good?", launch=launch(tmp_path, "fail"))
    lines = str(caught.value).splitlines()[1:]
    assert lines == [*(f"  line {number}" for number in range(11, 30)), "   [31mno GPU found"]


def test_a_server_that_never_answers_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_launch, "_PROGRESS_S", 0.2)
    with pytest.raises(LaunchError, match=r"did not answer within start_timeout_s: 0\.5"):
        LaunchedServer(launch_of(launch(tmp_path, "hang", start_timeout_s=0.5)))
    here = psutil.Process().children(recursive=True)
    assert not [child for child in here if str(SERVER) in child.cmdline()]


def test_a_program_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match="no program 'no-such-server'"):
        LaunchedServer(launch_of({"command": ["no-such-server", "{port}"], "log": str(tmp_path / "log")}))
    monkeypatch.setenv("PATH", str(tmp_path))
    if not (Path(sys.executable).parent / "vllm").exists():
        with pytest.raises(LaunchError, match=r"unigrpo\[vllm\]"):
            LaunchedServer(launch_of({"model": "some/model"}))


def test_vllm_is_served_on_the_loopback_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (Path(sys.executable).parent / "vllm").exists():
        pytest.skip("vllm of this environment comes first")
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    order = launch_of({"model": "some/model", "arguments": ["--max-model-len", 4096]})
    wanted = [str(program), "serve", "some/model", "--host", "127.0.0.1", "--port", "81", "--max-model-len", "4096"]
    assert judge_launch._command(order, 81) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "needs model"),
        ({"modle": "x"}, "knows no modle; it takes model"),
        ({"model": "x", "arguments": "--a b"}, "give a list of words"),
        ({"command": "vllm serve"}, "give a list of words"),
        ({"command": ["serve"]}, "no '{port}'"),
        ({"model": "x", "port": 70_000}, "port 70000"),
        ({"model": "x", "start_timeout_s": 0}, "start_timeout_s 0"),
    ],
)
def test_orders_that_cannot_be_are_refused(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        launch_of(given)
