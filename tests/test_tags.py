import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from unigrpo.rewards.process import tags
from unigrpo.rewards.process.child import Child, ChildDiedError, ChildTimeoutError
from unigrpo.settings.rewards import EnvSettings

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")

LEAVES = """
import os, subprocess, sys, time
from pathlib import Path

FOLDER = Path(__file__).parent
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

def start():
    started = subprocess.Popen(SLEEP, start_new_session=True)
    FOLDER.joinpath("session").write_text(str(started.pid))
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            FOLDER.joinpath("daemon.part").write_text(str(os.getpid()))
            FOLDER.joinpath("daemon.part").rename(FOLDER / "daemon")
            time.sleep(600)
        os._exit(0)
    while not FOLDER.joinpath("daemon").exists():
        time.sleep(0.01)

def then_hang(completions, **columns):
    start()
    time.sleep(600)

def then_die(completions, **columns):
    start()
    os._exit(3)

def then_answer(completions, **columns):
    start()
    return [1.0] * len(completions)
"""

DRIVER = """
import sys, time
from unigrpo.rewards.process.child import Child
child = Child("unigrpo.rewards.process.worker")
child.send({"load": {"use": sys.argv[1], "arguments": {}, "name": "it", "folder": None}})
child.receive(timeout_s=60)
child.send({"columns": {"prompts": ["?"], "completions": [""]}, "step": 0})
child.receive(timeout_s=60)
print("ready", flush=True)
time.sleep(600)
"""


def asked(
    folder: Path, name: str, module: str = "unigrpo.rewards.process.worker", arguments: Sequence[str] = ()
) -> Child:
    file = folder / "leaves.py"
    file.write_text(LEAVES)
    child = Child(module, arguments=arguments)
    child.send({"load": {"use": f"{file}:{name}", "arguments": {}, "name": "it", "folder": None}})
    assert "range" in child.receive(timeout_s=60)
    child.send({"columns": {"prompts": ["?"], "completions": [""]}, "step": 0})
    return child


def alive(folder: Path, *, within_s: float = 0.0) -> list[int]:
    """Return who is left of those that a worker started; who was killed takes a moment to be gone."""
    pids = [int(folder.joinpath(name).read_text()) for name in ("session", "daemon")]
    end_s = time.monotonic() + within_s
    while True:
        left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > end_s:
            return left
        time.sleep(0.05)


def test_what_left_the_group_of_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    child = asked(tmp_path, "then_hang")
    with pytest.raises(ChildTimeoutError):
        child.receive(timeout_s=3)
    assert alive(tmp_path, within_s=5) == []


def test_a_worker_that_died_has_not_hung_though_its_daemon_lives_and_the_daemon_is_ended(tmp_path: Path) -> None:
    child = asked(tmp_path, "then_die")
    with pytest.raises(ChildDiedError, match="code 3"):  # Not a timeout: the fork does not hold the socket.
        child.receive(timeout_s=60)
    assert alive(tmp_path, within_s=5) == []


def test_what_left_the_group_lives_until_the_kill(tmp_path: Path) -> None:
    child = asked(tmp_path, "then_answer")
    assert child.receive(timeout_s=60)["values"] == [1.0]
    assert len(alive(tmp_path)) == 2
    child.kill()
    assert alive(tmp_path, within_s=5) == []


def test_an_interpreter_of_its_own_has_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIGRPO_HOME", str(tmp_path))
    env = EnvSettings(python=sys.executable).model_dump_json()
    child = asked(tmp_path, "then_answer", "unigrpo.rewards.process.env_worker", [env, ""])
    assert child.receive(timeout_s=60)["values"] == [1.0]
    assert len(alive(tmp_path)) == 2
    child.kill()
    assert alive(tmp_path, within_s=5) == []


def test_what_left_the_group_is_ended_when_the_driver_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "leaves.py"
    file.write_text(LEAVES)
    command = [sys.executable, "-c", DRIVER, f"{file}:then_answer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == "ready"
        assert len(alive(tmp_path)) == 2
        driver.kill()
    assert alive(tmp_path, within_s=5) == []


def test_a_child_of_a_child_has_both_marks_and_its_kill_spares_the_outer_one() -> None:
    environment = dict(os.environ)
    outer = tags.add_tag(environment)
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    first = subprocess.Popen(sleep, env=environment, stdout=subprocess.PIPE)
    inner = tags.add_tag(environment)
    second = subprocess.Popen(sleep, env=environment, stdout=subprocess.PIPE)
    with first, second:
        for process in (first, second):
            assert process.stdout is not None
            process.stdout.readline()
        assert inner != outer
        tags.end_tagged(inner)
        assert second.wait(5) == -signal.SIGKILL
        assert first.poll() is None
        tags.end_tagged(outer)
        assert first.wait(5) == -signal.SIGKILL


def test_a_fork_of_the_owner_ends_nobody(tmp_path: Path) -> None:
    child = asked(tmp_path, "then_answer")
    child.receive(timeout_s=60)
    fork = os.fork()
    if fork == 0:
        child.kill()
        os._exit(0)
    os.waitpid(fork, 0)
    assert len(alive(tmp_path)) == 2
    child.kill()
    assert alive(tmp_path, within_s=5) == []
