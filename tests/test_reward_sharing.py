"""Rewards in one process, groups that stay whole, callers that share a call, and workers on Ray."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from reward_rollouts import rollout

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.runtime.lane import Lane, Request
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rewards.runtime.step_log import StepLog
from unigrpo.rewards.runtime.worker_process import RewardWorker
from unigrpo.settings import RewardSettings

SPECIMENS = Path(__file__).parent
OK, ERROR = RewardStatus.OK, RewardStatus.ERROR


def reward(name, file="cache_specimens", **settings):
    return RewardSettings(use=f"{SPECIMENS / file}.py:{name}", **({"timeout_s": 20.0} | settings))


def rollouts(texts):
    return [rollout(text, number=number) for number, text in enumerate(texts)]


def test_rewards_of_one_worker_share_its_process_and_what_it_has_loaded():
    settings = {"one": reward("Shared", worker="clip"), "two": reward("Shared", worker="clip"), "own": reward("Shared")}
    with RewardPool(settings) as pool:
        one, two, own = pool.score(rollouts(["a"])).values[0]
        was_there = {name: stats.metrics["was_there"] for name, stats in pool.last_stats.items()}
    assert one == two != own
    assert was_there == {"one": 0.0, "two": 1.0, "own": 0.0}
    assert not psutil.pid_exists(int(one))


def test_a_crash_in_a_shared_worker_costs_the_other_reward_nothing():
    settings = {
        "bomb": reward("Shared", worker="clip", arguments={"is_bomb": True}),
        "other": reward("Shared", worker="clip"),
    }
    with RewardPool(settings) as pool:
        table = pool.score(rollouts(["a", "bomb", "b", "c", "d", "e", "f"]))
    assert table.status[:, 0].tolist() == [OK, ERROR, OK, OK, OK, OK, OK]
    assert (table.status[:, 1] == OK).all()


TEXTS = ["a", "a", "a", "a", *"abcd", *"aabb", *"aaab", *"abca"]
DIFFERENT = [0.1, 0.4, 0.2, 0.2, 0.3]


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 64), (2, 8), (3, 5), (1, 1)])
def test_groups_are_split_neither_over_workers_nor_over_calls(num_workers, batch_size):
    with RewardPool({"it": reward("Diversity", num_workers=num_workers, batch_size=batch_size)}) as pool:
        table = pool.score(rollouts(TEXTS))
        assert pool.last_stats["it"].num_repeats == 0
    assert table.values[:, 0].tolist() == np.repeat(DIFFERENT, 4).tolist()


@pytest.mark.parametrize("bomb", ["raise", "exit"])
def test_a_group_that_fails_fails_whole_and_alone(bomb):
    texts = [*TEXTS[:9], "bomb", *TEXTS[10:]]
    settings = reward("Diversity", arguments={"bomb": bomb}, max_failed_fraction=0.5)
    with RewardPool({"it": settings}) as pool:
        table = pool.score(rollouts(texts))
    assert table.status[:, 0].tolist() == [OK] * 8 + [ERROR] * 4 + [OK] * 8
    assert table.values[:8, 0].tolist() == np.repeat(DIFFERENT[:2], 4).tolist()


def test_callers_that_wait_for_a_worker_go_out_in_one_call():
    worker = RewardWorker(
        name="it", settings=reward("size_of_call", "reward_specimens"), folder=None, start_timeout_s=60.0
    )
    lane = Lane(worker=worker, batch_size=6)
    given = rollouts([f"{number}" for number in range(12)])

    def score(rows):
        log = StepLog(name="it", num_items=12, max_fraction=0.2)
        units = [(row,) for row in rows]
        found = lane.score(Request(rollouts=given, units=units, group_ids=None, step=0, log=log))
        assert log.extras["text"] == {row: f"{row}" for row in rows}
        return {row: outcome.value for row, outcome in found.items()}

    worker.wait_until_loaded()
    with ThreadPoolExecutor(4) as threads, lane._turn:  # Held until all have put in what they want.
        running = [threads.submit(score, range(start, start + 3)) for start in range(0, 12, 3)]
        while len(lane._pending) < 4:
            threading.Event().wait(0.01)
    assert [set(future.result().values()) for future in running] == [{6.0}] * 4
    worker.close()


def test_several_threads_may_score_at_once():
    settings = {"it": reward("length", "reward_specimens"), "other": reward("exit_on_bomb", "reward_specimens")}
    with RewardPool(settings) as pool, ThreadPoolExecutor(4) as threads:
        steps = [rollouts(["x" * (number + 1) for number in range(step, step + 6)]) for step in range(4)]
        tables = list(threads.map(pool.score, steps))
    for step, table in enumerate(tables):
        assert table.values[:, 0].tolist() == [(number + 1) / 100 for number in range(step, step + 6)]


@pytest.mark.ray
def test_a_worker_on_ray_gives_the_same_table_and_its_death_costs_a_restart():
    import ray

    from unigrpo.rewards.process.remote_child import RemoteChild

    batch = [*("x" * number for number in range(1, 6)), "bomb", *("y" * number for number in range(1, 6))]
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, _node_ip_address="127.0.0.1"
    )
    try:
        tables = []
        for placement in ("local", "ray"):
            settings = {
                name: reward(name, "reward_specimens", placement=placement, num_cpus=0.1, timeout_s=5.0, cache="off")
                for name in ("hang_on_bomb", "exit_on_bomb", "raise_on_bomb")
            }
            with RewardPool(settings) as pool:
                tables.append(pool.score(rollouts(batch)))
                assert pool.last_stats["hang_on_bomb"].num_restarts == 2
                if placement == "local":
                    continue
                for index in (0, 1):  # The actor, which takes its child along; then the child alone.
                    child = pool._scorers["raise_on_bomb"].workers[0]._process._child
                    assert isinstance(child, RemoteChild)
                    os.kill(child.process_ids()[index], 9)
                    again = pool.score(rollouts(["a", "bb"]))
                    assert again.values[:, 2].tolist() == [0.01, 0.02]
                    assert pool.last_stats["raise_on_bomb"].num_restarts == 1
        np.testing.assert_array_equal(tables[0].values, tables[1].values)
        np.testing.assert_array_equal(tables[0].status, tables[1].status)
    finally:
        ray.shutdown()
