"""Rewards in one process, groups that stay whole, steps at once, and workers on Ray."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from reward_rollouts import rollout

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent
OK, ERROR = RewardStatus.OK, RewardStatus.ERROR


def reward(name, file="cache_specimens", **settings):
    return RewardSettings(use=f"{SPECIMENS / file}.py:{name}", **({"timeout_s": 20.0} | settings))


def rollouts(texts):
    return [rollout(text, number=number) for number, text in enumerate(texts)]


def test_rewards_of_one_worker_share_its_process_and_what_it_has_loaded():
    settings = {"one": reward("Shared", worker="clip"), "two": reward("Shared", worker="clip"), "own": reward("Shared")}
    with RewardPool(settings) as pool:
        scored = pool.score(rollouts(["a"]))
        one, two, own = scored.table.values[0]
        was_there = {name: stats.metrics["was_there"] for name, stats in scored.stats.items()}
    assert one == two != own
    assert was_there == {"one": 0.0, "two": 1.0, "own": 0.0}
    assert not psutil.pid_exists(int(one))


def test_a_crash_in_a_shared_worker_costs_the_other_reward_nothing():
    settings = {
        "bomb": reward("Shared", worker="clip", arguments={"is_bomb": True}),
        "other": reward("Shared", worker="clip"),
    }
    with RewardPool(settings) as pool:
        table = pool.score(rollouts(["a", "bomb", "b", "c", "d", "e", "f"])).table
    assert table.status[:, 0].tolist() == [OK, ERROR, OK, OK, OK, OK, OK]
    assert (table.status[:, 1] == OK).all()


TEXTS = ["a", "a", "a", "a", *"abcd", *"aabb", *"aaab", *"abca"]
DIFFERENT = [0.1, 0.4, 0.2, 0.2, 0.3]


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 64), (2, 8), (3, 5), (1, 1)])
def test_groups_are_split_neither_over_workers_nor_over_calls(num_workers, batch_size):
    with RewardPool({"it": reward("Diversity", num_workers=num_workers, batch_size=batch_size)}) as pool:
        scored = pool.score(rollouts(TEXTS))
        assert scored.stats["it"].num_repeats == 0
    assert scored.table.values[:, 0].tolist() == np.repeat(DIFFERENT, 4).tolist()


@pytest.mark.parametrize("bomb", ["raise", "exit"])
def test_a_group_that_fails_fails_whole_and_alone(bomb):
    texts = [*TEXTS[:9], "bomb", *TEXTS[10:]]
    settings = reward("Diversity", arguments={"bomb": bomb}, max_failed_fraction=0.5)
    with RewardPool({"it": settings}) as pool:
        table = pool.score(rollouts(texts)).table
    assert table.status[:, 0].tolist() == [OK] * 8 + [ERROR] * 4 + [OK] * 8
    assert table.values[:8, 0].tolist() == np.repeat(DIFFERENT[:2], 4).tolist()


def test_several_threads_may_score_at_once():
    settings = {"it": reward("length", "reward_specimens"), "other": reward("exit_on_bomb", "reward_specimens")}
    with RewardPool(settings) as pool, ThreadPoolExecutor(4) as threads:
        steps = [rollouts(["x" * (number + 1) for number in range(step, step + 6)]) for step in range(4)]
        tables = [scored.table for scored in threads.map(pool.score, steps)]
    for step, table in enumerate(tables):
        assert table.values[:, 0].tolist() == [(number + 1) / 100 for number in range(step, step + 6)]


def test_two_steps_that_are_scored_at_once_have_results_of_their_own():
    settings = {"it": reward("raise_on_bomb", "reward_specimens"), "logs": reward("size_of_call", "reward_specimens")}
    steps = {"clean": ["a", "bb", "ccc"], "bombed": ["bomb", "dddd", "a", "e", "f"]}
    both = threading.Barrier(2)

    def score(texts):
        both.wait()
        return pool.score(rollouts(texts))

    with RewardPool(settings, max_failed_fraction=1.0) as pool, ThreadPoolExecutor(2) as threads:
        pool.wait_until_loaded()
        clean, bombed = threads.map(score, steps.values())
        assert not pool.is_scoring
    assert clean.table.values[:, 0].tolist() == [0.01, 0.02, 0.03]
    assert clean.table.status[:, 0].tolist() == [OK] * 3
    assert bombed.table.status[:, 0].tolist() == [ERROR, OK, OK, OK, OK]
    assert clean.reasons["it"] == ["", "", ""]
    assert [bool(reason) for reason in bombed.reasons["it"]] == [True, False, False, False, False]
    assert clean.metrics["reward/logs/size"] == 3.0
    assert len(clean.keys["it"]) == 3
    assert len(bombed.keys["it"]) == 5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_on_ray_gives_the_same_table_and_its_death_costs_a_restart():
    from unigrpo.rewards.process.remote_child import RemoteChild

    batch = ["x", "xx", "bomb", "y"]
    tables = []
    for placement in ("local", "ray"):
        settings = {
            name: reward(name, "reward_specimens", placement=placement, num_cpus=0.1, timeout_s=5.0, cache="off")
            for name in ("hang_on_bomb", "exit_on_bomb", "raise_on_bomb")
        }
        with RewardPool(settings) as pool:
            scored = pool.score(rollouts(batch))
            tables.append(scored.table)
            assert scored.stats["hang_on_bomb"].num_restarts == 2
            if placement == "local":
                continue
            for index in (0, 1):  # The actor, which takes its child along; then the child alone.
                child = pool._scorers["raise_on_bomb"]._processes[0]._child
                assert isinstance(child, RemoteChild)
                os.kill(child.process_ids()[index], 9)
                scored = pool.score(rollouts(["a", "bb"]))
                assert scored.table.values[:, 2].tolist() == [0.01, 0.02]
                assert scored.stats["raise_on_bomb"].num_restarts == 1
    np.testing.assert_array_equal(tables[0].values, tables[1].values)
    np.testing.assert_array_equal(tables[0].status, tables[1].status)
