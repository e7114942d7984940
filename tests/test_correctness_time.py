"""Whose time is whose: a slow machine, a slow start and a worker's end make no answer wrong; only its own time does."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from reward_rollouts import rollout

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.base import Failed, TimedOut
from unigrpo.rewards.correctness import AlgebraError, Correctness
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rewards.runtime.process import RewardLoadError
from unigrpo.rewards.runtime.step_log import RewardStats
from unigrpo.runs.stopping import ScoringStopped, stop_requests
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent / "reward_specimens.py"
BOMB = r"\boxed{\int_0^{\infty} \frac{\sin(x^x)}{\ln(x+\cos x)} dx}"
RIGHT = r"\boxed{x^2+2x+1}"
GOLD = "(x+1)^2"
SLOW_START_S = 2.5


def value(reward: Correctness, completion: str, gold: str) -> object:
    return reward(prompts=["?"], completions=[completion], answer=[gold])[0]


def algebra_process(parent: psutil.Process) -> psutil.Process:
    (found,) = (each for each in parent.children(recursive=True) if "math_worker" in " ".join(each.cmdline()))
    return found


def at_start_of_the_algebra(folder: Path, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every interpreter below this one run a statement first if it is the one that compares."""
    lines = ["import sys, time", "if any('math_worker' in argument for argument in sys.orig_argv):", f"    {statement}"]
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def reward() -> Iterator[Correctness]:
    made = Correctness(deadline_s=1.5)
    made.start()
    yield made
    made.close()


def test_a_started_worker_has_compared_already(reward: Correctness) -> None:
    """The first comparison of a process takes half a second of CPU; a warm one takes some milliseconds."""
    assert reward._child is not None
    worker = psutil.Process(reward._child.pid)
    before_s = sum(worker.cpu_times()[:2])
    assert value(reward, RIGHT, GOLD) == 1.0
    assert sum(worker.cpu_times()[:2]) - before_s < 0.25


def test_a_machine_that_stands_still_beyond_the_deadline_makes_no_right_answer_wrong(reward: Correctness) -> None:
    assert reward._child is not None
    os.kill(reward._child.pid, signal.SIGSTOP)
    timer = threading.Timer(3.0, os.kill, (reward._child.pid, signal.SIGCONT))
    timer.start()
    start_s = time.monotonic()
    assert value(reward, RIGHT, GOLD) == 1.0
    assert time.monotonic() - start_s > 2.5
    assert reward.num_timeouts == 0
    timer.join()


def test_a_machine_that_never_goes_on_is_a_failure_of_the_machine(
    reward: Correctness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unigrpo.rewards.correctness.MIN_WALL_S", 1.0)
    monkeypatch.setattr("unigrpo.rewards.correctness.WALL_FACTOR", 1.0)
    assert reward._child is not None
    os.kill(reward._child.pid, signal.SIGSTOP)
    assert isinstance(value(reward, RIGHT, GOLD), Failed)
    assert value(reward, RIGHT, GOLD) == 1.0


def test_an_answer_without_end_is_judged_anew_each_time(reward: Correctness) -> None:
    for count in (1, 2):
        given = value(reward, BOMB, "1")
        assert isinstance(given, TimedOut)
        assert given == 0.0
        assert reward.num_timeouts == count
        assert len(reward._cache) == 0


def test_a_gold_answer_without_end_is_nobodys_fault_and_not_called_unreadable() -> None:
    reward = Correctness(deadline_s=1.0)
    gold = "(" * 60 + "x" + ")" * 60
    given = value(reward, r"\boxed{\sqrt{3}}", gold)
    assert isinstance(given, Failed), given
    assert "gold answer" in given.reason
    assert reward.num_timeouts == 0
    reward.close()


def test_each_pair_on_which_the_worker_dies_gets_another_chance_whatever_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies once on the first answer and once on the last; the one between uses up its CPU seconds."""
    (tmp_path / "deaths.py").write_text(
        """
import math_verify, os, pathlib, signal

parse = math_verify.parse

def deadly(text, **options):
    for variable in ("p", "q"):
        mark = pathlib.Path(__file__).with_name(f"died_on_{variable}")
        if f"({variable}+1)" in text and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return parse(text, **options)

math_verify.parse = deadly
"""
    )
    at_start_of_the_algebra(tmp_path, "import deaths", monkeypatch)
    reward = Correctness(deadline_s=1.5)
    texts, gold = [r"\boxed{p^2+p}", BOMB, r"\boxed{q^2+q}"], ["p(p+1)", "1", "q(q+1)"]
    values = reward(prompts=["?"] * 3, completions=texts, answer=gold)
    reward.close()
    assert values == [1.0, 0.0, 1.0]
    assert [isinstance(each, TimedOut) for each in values] == [False, True, False]
    assert {path.name for path in tmp_path.glob("died_on_*")} == {"died_on_p", "died_on_q"}


def test_a_worker_that_cannot_start_is_a_failure_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_start_of_the_algebra(tmp_path, "sys.exit(3)", monkeypatch)
    reward = Correctness()
    assert isinstance(value(reward, RIGHT, GOLD), Failed)
    assert value(reward, r"\boxed{5}", "5") == 1.0
    with pytest.raises(AlgebraError, match=r"did not start: process .* exited with code 1"):
        reward.start()
    settings = RewardSettings(use="unigrpo.rewards.correctness:Correctness")
    with RewardPool({"it": settings}) as pool, pytest.raises(RewardLoadError, match="did not start"):
        pool.wait_until_loaded()


def test_a_start_longer_than_the_timeout_of_a_call_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first, after the worker was killed, and after an answer ended the process that compares."""
    at_start_of_the_algebra(tmp_path, f"time.sleep({SLOW_START_S})", monkeypatch)
    use, arguments = "unigrpo.rewards.correctness:Correctness", {"deadline_s": 1.5}
    ok, late = RewardStatus.OK, RewardStatus.TIMEOUT
    right = [rf"\boxed{{x^2+{2 * number}x+{number**2}}}" for number in range(1, 6)]
    with RewardPool({"it": RewardSettings(use=use, arguments=arguments, timeout_s=2.0)}) as pool:

        def score(*texts: str, gold: str) -> tuple[list[int], RewardStats]:
            scored = pool.score([rollout(text, number=n, answer=gold) for n, text in enumerate(texts)])
            pool.remember(scored)
            return scored.table.status[:, 0].tolist(), scored.stats["it"]

        assert score(right[0], gold="(x+1)^2")[0] == [ok]
        algebra = algebra_process(psutil.Process())
        worker = algebra.parent()
        assert worker is not None
        worker.kill()
        psutil.wait_procs([worker, algebra], timeout=5)
        status, stats = score(right[1], gold="(x+2)^2")
        assert (status, stats.num_restarts) == ([ok], 1)
        for _ in range(2):
            status, stats = score(BOMB, right[2], gold="(x+3)^2")
            assert (status, stats.num_restarts) == ([late, ok], 0)
        assert stats.num_known == 1  # The right one; the other was scored again.
        table = pool.score([rollout(right[3], answer="(x+4)^2")]).table
        assert table.values[:, 0].tolist() == [1.0]


def test_timeouts_that_a_reward_reports_stop_no_run() -> None:
    settings = RewardSettings(use=f"{SPECIMENS}:timed_out")
    with RewardPool({"it": settings}) as pool:
        table = pool.score([rollout(f"{number}", number=number) for number in range(8)]).table
        assert table.status[:, 0].tolist() == [RewardStatus.TIMEOUT] * 8
        assert table.values[:, 0].tolist() == [0.0] * 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_score_that_hangs(number: signal.Signals) -> None:
    with RewardPool({"it": RewardSettings(use=f"{SPECIMENS}:always_hangs", timeout_s=60.0)}) as pool:
        pool.wait_until_loaded()
        timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
        start_s = time.monotonic()
        with stop_requests(lambda: pool.is_scoring) as is_asked, pytest.raises(ScoringStopped):
            timer.start()
            pool.score([rollout("a")])
        assert time.monotonic() - start_s < 10.0
        assert not is_asked()
        assert not any("rewards.process.worker" in " ".join(child.cmdline()) for child in psutil.Process().children())
    timer.join()
