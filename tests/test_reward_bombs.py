"""Four answers that no machine can evaluate, at once: the others are scored, and the pool is what it was."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Message, PolicyVersion, Prompt, Rollout, Span

BOMBS = [
    (r"\boxed{9^9^9^9}", "1"),
    (r"\boxed{10^{10^{10}}}", "2"),
    (r"\boxed{100000000!}", "3"),
    (r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k}}", "4"),
]
PLAIN = [(rf"\boxed{{\sqrt{{{number**2}}}}}", str(number + number % 2)) for number in range(3, 27)]
"""Right for even numbers, wrong for odd ones; all need the algebra system."""

UNGUARDED = """
import math

def evaluate(completions, **columns):
    for completion in completions:
        if "9^9^9^9" in completion:
            9**9**9
        if "10^{10^{10}}" in completion:
            10**10**10
        if "100000000!" in completion:
            math.factorial(100_000_000)
        if "10^{12}" in completion:
            sum(1 / k for k in range(1, 10**12))
    return [1.0] * len(completions)
"""


def rollout(text: str, gold: str, number: int) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"p{number}", kind="reason", messages=(Message(role="user", text="?"),), answer=gold),
        sample_index=0,
        token_ids=np.arange(6),
        spans=(Span(kind="text", start=0, stop=6, is_open=True),),
        is_completion=np.arange(6) >= 3,
        committed_step=np.zeros(6, np.int32),
        committed_logprobs=np.zeros(6, np.float32),
        text=text,
        image=None,
        seed=0,
        policy_version=PolicyVersion(step=0, kind="adapter", sha256=""),
        is_truncated=False,
    )


def mixed(attempt: str) -> tuple[list[Rollout], list[int]]:
    """Return bombs among plain answers, and the bombs' rows; another attempt has other texts, so none is cached."""
    pairs = [*PLAIN]
    rows = [2, 9, 16, 23]
    for row, bomb in zip(rows, BOMBS, strict=True):
        pairs.insert(row, bomb)
    return [rollout(f"{attempt}: {text}", gold, number) for number, (text, gold) in enumerate(pairs)], rows


def plain(attempt: str) -> list[Rollout]:
    return [rollout(f"{attempt}: {text}", gold, number) for number, (text, gold) in enumerate(PLAIN)]


def memory_of_all() -> int:
    """Resident bytes of this process and all below it."""
    process = psutil.Process()
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def num_processes() -> int:
    return len(psutil.Process().children(recursive=True))


def test_correctness_scores_the_others_and_nothing_is_left_behind() -> None:
    settings = RewardSettings(use="unigrpo.rewards.correctness:Correctness", timeout_s=60)
    expected = [float(number % 2 == 0) for number in range(3, 27)]
    with RewardPool({"correctness": settings}) as pool:
        assert pool.score(plain("before")).table.values[:, 0].tolist() == expected
        before = memory_of_all(), num_processes()
        for attempt in ("one", "two"):
            rollouts, rows = mixed(attempt)
            scored = pool.score(rollouts)
            table = scored.table
            assert np.delete(table.values[:, 0], rows).tolist() == expected
            assert table.values[rows, 0].tolist() == [0.0] * 4
            assert scored.stats["correctness"].num_restarts == 0
        assert pool.score(plain("after")).table.values[:, 0].tolist() == expected
        assert num_processes() == before[1]
        assert memory_of_all() == pytest.approx(before[0], rel=0.1)


def test_a_reward_without_guards_is_killed_replaced_and_costs_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UNGUARDED)
    settings = RewardSettings(use="mine.py:evaluate", timeout_s=1.5)
    rollouts, rows = mixed("one")
    with RewardPool({"mine": settings}, folder=tmp_path) as pool:
        pool.score(plain("before"))
        before = memory_of_all(), num_processes()
        scored = pool.score(rollouts)
        table = scored.table
        assert np.delete(table.values[:, 0], rows).tolist() == [1.0] * len(PLAIN)
        assert table.values[rows, 0].tolist() == [0.0] * 4
        assert set(table.status[rows, 0].tolist()) <= {RewardStatus.TIMEOUT, RewardStatus.OK}
        assert scored.stats["mine"].num_restarts >= 4
        assert pool.score(plain("after")).table.values[:, 0].tolist() == [1.0] * len(PLAIN)
        assert num_processes() == before[1]
        assert memory_of_all() == pytest.approx(before[0], rel=0.1)


COMPLETIONS = [r"\boxed{\frac{1}{\sqrt{3}}}", r"\boxed{9^9^9^9}", "#### 7", "It is 8.", "", r"\boxed{(x+1)^2}"]
GOLDS = [r"\frac{\sqrt{3}}{3}", "1", "7", "9", "1", "x^2+2x+1"]
VERDICTS = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.fixture
def reward() -> Iterator[Correctness]:
    made = Correctness(deadline_s=40.0)
    yield made
    made.close()


def judge(reward: Correctness) -> list[float | None]:
    return reward(prompts=["?"] * 6, completions=COMPLETIONS, answer=GOLDS)


def test_main_thread_other_threads_and_a_running_loop_judge_alike(reward: Correctness) -> None:
    given = [judge(reward)]
    thread = threading.Thread(target=lambda: given.append(judge(reward)))
    thread.start()
    thread.join()

    async def in_a_loop() -> list[float | None]:
        return judge(reward)

    async def from_a_loop() -> list[float | None]:
        return await asyncio.to_thread(judge, reward)

    given += [asyncio.run(in_a_loop()), asyncio.run(from_a_loop())]
    assert given == [VERDICTS] * 4


@pytest.mark.ray
def test_a_ray_actor_judges_alike(ray_cluster: Any) -> None:
    class Judge:
        def score(self, reward: Correctness, completions: list[str], golds: list[str]) -> list[float | None]:
            return reward(prompts=completions, completions=completions, answer=golds)

    class AsyncJudge:
        async def score(self, reward: Correctness, completions: list[str], golds: list[str]) -> list[float | None]:
            return reward(prompts=completions, completions=completions, answer=golds)

    actors = [ray_cluster.remote(num_cpus=0)(kind).remote() for kind in (Judge, AsyncJudge)]
    answers = [actor.score.remote(Correctness(deadline_s=40.0), COMPLETIONS, GOLDS) for actor in actors]
    assert ray_cluster.get(answers, timeout=120) == [VERDICTS] * 2
    for actor in actors:
        ray_cluster.kill(actor)
