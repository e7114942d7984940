import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.process import wire
from unigrpo.rewards.process.worker import judged

SPECIMENS = Path(__file__).parent / "reward_specimens.py"

DRIVER = r"""
import sys, time
from unigrpo.rewards.process.child import Child

def start(use):
    worker = Child("unigrpo.rewards.process.worker")
    worker.send({"load": {"use": use, "arguments": {}, "name": "it", "folder": None}})
    assert "range" in worker.receive(timeout_s=60)
    return worker

idle, busy, math = start(sys.argv[1] + ":length"), start(sys.argv[1] + ":hang_on_bomb"), start(sys.argv[2])
busy.send({"columns": {"prompts": ["?"], "completions": ["bomb"]}, "step": 0, "deadline_s": 60})
columns = {"prompts": ["?"], "completions": [r"\boxed{\sqrt{25}}"], "answer": ["5"]}
math.send({"columns": columns, "step": 0, "deadline_s": 60})
print(math.receive(timeout_s=60)["values"], flush=True)
time.sleep(600)
"""


def test_workers_and_their_children_end_when_the_driver_is_killed() -> None:
    use = "unigrpo.rewards.correctness:Correctness"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(SPECIMENS), use], stdout=subprocess.PIPE, text=True)
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == "[1.0]"
        workers = psutil.Process(driver.pid).children(recursive=True)
        assert len(workers) == 4  # Three rewards, and the comparing process of one of them.
        driver.kill()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_killed_worker_takes_its_children_along() -> None:
    from unigrpo.rewards.process.child import Child

    worker = Child("unigrpo.rewards.process.worker")
    order = {"use": "unigrpo.rewards.correctness:Correctness", "arguments": {}, "name": "it", "folder": None}
    worker.send({"load": order})
    worker.receive(timeout_s=60)
    columns = {"prompts": ["?"], "completions": [r"\boxed{\sqrt{25}}"], "answer": ["5"]}
    worker.send({"columns": columns, "step": 0})
    assert worker.receive(timeout_s=60)["values"] == [1.0]
    children = psutil.Process(worker.pid).children()
    assert len(children) == 1
    worker.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_trl_rewards_run_unmodified_in_a_worker() -> None:
    from unigrpo.rewards.process.child import Child

    if not (Path(np.__file__).parents[1] / "trl" / "rewards").is_dir():
        pytest.skip("trl is not installed")
    worker = Child("unigrpo.rewards.process.worker")
    worker.send({"load": {"use": "trl.rewards:accuracy_reward", "arguments": {}, "name": "it", "folder": None}})
    reply = worker.receive(timeout_s=120)
    if "error" in reply:
        pytest.skip(reply["error"])
    columns = {"prompts": ["?"] * 2, "completions": [r"\boxed{5}", r"\boxed{6}"], "answer": ["5", "5"]}
    worker.send({"columns": columns, "step": 0, "deadline_s": 30})
    assert worker.receive(timeout_s=60)["values"] == [1.0, 0.0]
    worker.kill()


def test_values_are_judged_one_by_one() -> None:
    values, status = judged([1, True, np.float32(0.5), None, float("nan"), float("-inf"), "x", [1.0]])
    ok, skipped, invalid = RewardStatus.OK, RewardStatus.NOT_APPLICABLE, RewardStatus.INVALID
    assert values == [1.0, 1.0, 0.5, None, None, None, None, None]
    assert status == [ok, ok, ok, skipped, invalid, invalid, invalid, invalid]


def test_a_masked_value_is_none_and_not_0() -> None:
    masked, whole = np.ma.array([1.0], mask=[True]), np.ma.array([1.0], mask=[False])
    values, status = judged([np.ma.masked, masked, whole, np.ma.array([1.0, 2.0], mask=[True, False])])
    skipped = RewardStatus.NOT_APPLICABLE
    assert values == [None, None, 1.0, None]
    assert status == [skipped, skipped, RewardStatus.OK, RewardStatus.INVALID]
    assert np.ma.array([1.0, 2.0], mask=[True, False]).tolist() == [None, 2.0]  # What a whole array comes to.


def test_messages_come_back_whole() -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    sent = {
        "text": "\ud800 é",
        "picture": [picture, picture],
        "array": array,
        "bytes": b"\x00",
        "map": {1: {"$": None}},
    }
    received = roundtrip(sent)
    assert received["text"] == sent["text"]
    assert received["picture"][0] is received["picture"][1]
    assert received["picture"][0].tobytes() == picture.tobytes()
    np.testing.assert_array_equal(received["array"], array)
    assert received["bytes"] == b"\x00"
    assert received["map"] == {1: {"$": None}}


def roundtrip(message: dict[str, object]) -> dict[str, object]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, message)
        return wire.receive(theirs, timeout_s=5)


def test_what_is_no_data_is_named() -> None:
    with pytest.raises(TypeError, match=r"columns\.odd\[1\] is a set"):
        wire.encode({"columns": {"odd": [1, {2}]}})


def test_a_closed_and_a_silent_socket_are_told_apart() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        start_s = time.perf_counter()
        with pytest.raises(wire.WireTimeoutError):
            wire.receive(ours, timeout_s=0.1)
        assert time.perf_counter() - start_s < 2.0
        theirs.close()
        with pytest.raises(wire.WireClosedError):
            wire.receive(ours, timeout_s=5)


def test_a_dead_worker_says_how_it_ended() -> None:
    from unigrpo.rewards.process.child import Child, ChildDiedError

    worker = Child("unigrpo.rewards.process.worker")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ChildDiedError, match="ended by SIGKILL"):
        worker.receive(timeout_s=10)
    assert not worker.is_alive


@pytest.mark.ray
def test_correctness_works_in_a_ray_actor_and_ray_listens_to_this_machine_alone(tmp_path: Path) -> None:
    script = tmp_path / "actor.py"
    script.write_text(
        "import ipaddress, psutil\n"
        "from unigrpo.ray_start import start_ray\n"
        "start_ray()\n"
        "import ray\n"
        "from unigrpo.rewards.correctness import Correctness\n"
        "class Actor:\n"
        "    async def score(self, reward, completion):\n"
        "        return reward(prompts=['?'], completions=[completion], answer=['5'])\n"
        "actor = ray.remote(Actor).remote()\n"
        r"print(ray.get(actor.score.remote(Correctness(), r'\boxed{\sqrt{25}}'), timeout=90))" + "\n"
        "family = [psutil.Process(), *psutil.Process().children(recursive=True)]\n"
        "places = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]\n"
        "addresses = [ipaddress.ip_address(place) for place in places]\n"
        "print(len(places) > 3, all((getattr(a, 'ipv4_mapped', None) or a).is_loopback for a in addresses), places)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150, cwd=tmp_path)
    assert "[1.0]\nTrue True" in done.stdout, done.stdout + done.stderr
