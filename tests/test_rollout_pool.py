"""Rollout actors: the same tokens from any number of them, and from the survivors of a killed one."""

import atexit
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest

from unigrpo.errors import UserError
from unigrpo.models.adapter import set_trainable_state, state_version, trainable_state
from unigrpo.models.opening import open_policy
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.quickstart.sums import Sums
from unigrpo.ray_start import RayStalledError, _leave, lost_errors, within
from unigrpo.rollouts.base import PolicyVersionMismatchError, RolloutActorsLostError, RolloutDeadlineError
from unigrpo.rollouts.pools.local import LocalPool
from unigrpo.rollouts.pools.ray import RayPool, StallTimer, _check_version
from unigrpo.rollouts.units import plan_units
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.runs import RolloutSettings
from unigrpo.settings.tasks import DataSettings, SamplingSettings, TaskSettings
from unigrpo.types import PolicyVersion

SAMPLING = SamplingSettings(completion_length=12, num_denoising_steps=12, temperature=1.0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = make_policy(tmp_path_factory.mktemp("policy") / "tiny")
    return Recipe(
        name="pool",
        num_steps=1,
        group_size=4,
        policy=PolicySettings(path=str(folder), dtype="float32"),
        lora=LoraSettings(r=4, alpha=8),
        tasks={
            "reason": TaskSettings(
                kind="reason",
                data=DataSettings(use="unigrpo.quickstart.sums:Sums"),
                prompts_per_step=4,
                sampling=SAMPLING,
            )
        },
        rewards={"any": RewardSettings(use="unigrpo.rewards.format:Format")},
        learner=LearnerSettings(lr=1e-3),
        rollouts=RolloutSettings(num_actors=2, rows_per_unit=4, num_threads=1, deadline_s=600),
    )


@pytest.fixture(scope="module")
def weights(recipe):
    """An adapter that is not the fresh one, so that an actor without the delivery would give other tokens."""
    policy = open_policy(recipe.policy, recipe.lora, recipe.seed)
    state = {name: tensor + 0.05 for name, tensor in trainable_state(policy).items()}
    return state, state_version(state, 3, "adapter")


@pytest.fixture(scope="module")
def units():
    source = Sums(split="train", seed=0)
    return plan_units([(source[i], SAMPLING) for i in range(8)], group_size=4, rows_per_unit=4, seed=0, step=0)


@pytest.fixture(scope="module")
def expected(recipe, weights, units):
    policy = open_policy(recipe.policy, recipe.lora, recipe.seed)
    set_trainable_state(policy, weights[0])
    pool = LocalPool(policy)
    pool.load(*weights)
    return pool.generate(units)


def changed(recipe, **changes):
    return recipe.model_copy(update={"rollouts": recipe.rollouts.model_copy(update=changes)})


def opened(recipe, weights):
    found = RayPool(recipe)
    found.load(*weights)
    yield found
    found.close()


@pytest.fixture(scope="module")
def single(recipe, ray_cluster, weights):
    yield from opened(changed(recipe, num_actors=1), weights)


@pytest.fixture(scope="module")
def pair(recipe, ray_cluster, weights):
    yield from opened(recipe, weights)


def assert_same(rollouts, expected):
    assert len(rollouts) == len(expected)
    for one, other in zip(rollouts, expected, strict=True):
        assert one.prompt.id == other.prompt.id
        assert one.seed == other.seed
        assert np.array_equal(one.token_ids, other.token_ids)
        assert one.policy_version == other.policy_version


@pytest.mark.ray
@pytest.mark.parametrize("pool", ["single", "pair"])
def test_any_number_of_actors_gives_the_tokens_of_this_process(pool, units, expected, request):
    rollouts = request.getfixturevalue(pool).generate(units)
    assert_same(rollouts, expected)
    assert rollouts.group_ids == expected.group_ids == tuple(row // 4 for row in range(32))
    assert rollouts.num_redispatched == 0


@pytest.mark.ray
def test_an_actor_killed_in_mid_step_costs_no_token(pair, units, expected):
    victim = pair.process_ids()[0]
    killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
    killer.start()
    rollouts = pair.generate(units * 4)
    killer.join()
    assert_same(rollouts, expected.items * 4)
    assert victim not in pair.process_ids()
    assert rollouts.num_redispatched >= 1


@pytest.mark.ray
def test_an_actor_that_ray_ended_for_memory_is_replaced(single, ray_cluster, units, expected, monkeypatch):
    """Ray's memory monitor and a lost node end an actor with errors that are no RayActorError."""
    found = ray_cluster.exceptions
    for other in (found.NodeDiedError, found.WorkerCrashedError, found.OwnerDiedError, found.ActorUnavailableError):
        assert issubclass(other, lost_errors())
    assert not issubclass(found.RayTaskError, lost_errors()), "an error of our own code is no reason to try again"
    (before,), get = single.process_ids(), ray_cluster.get
    errors = [found.OutOfMemoryError("the node ran low on memory")]

    def get_or_raise(references, **options):
        if not isinstance(references, list) and errors:
            raise errors.pop()
        return get(references, **options)

    monkeypatch.setattr(ray_cluster, "get", get_or_raise)
    rollouts = single.generate(units)
    assert_same(rollouts, expected)
    assert rollouts.num_redispatched == 1
    assert single.process_ids() != [before]


@pytest.mark.ray
def test_a_call_into_a_ray_that_is_stopped_ends_at_its_deadline(ray_cluster):
    (raylet,) = [child for child in psutil.Process().children() if child.name() == "raylet"]
    raylet.suspend()
    try:
        with pytest.raises(RayStalledError, match=r"Ray did not take it in 1 s: its raylet .* `ray stop --force`"):
            within(1.0, "take it", ray_cluster.put, np.zeros(10**6, dtype=np.uint8))
    finally:
        raylet.resume()
        atexit.unregister(_leave)
    assert within(30.0, "take it", ray_cluster.put, np.zeros(10**6, dtype=np.uint8)) is not None
    with pytest.raises(ValueError, match="as it was"):
        within(1.0, "take it", int, "as it was")


@pytest.mark.ray
def test_a_deadline_shorter_than_the_waits_is_kept_and_says_what_it_waited_for(single, recipe, units, monkeypatch):
    # Only now: starting an actor may take longer.
    monkeypatch.setattr(single, "_recipe", changed(recipe, num_actors=1, deadline_s=1.0))
    (stopped,) = single.process_ids()
    os.kill(stopped, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(RolloutDeadlineError, match=r"rollout units \(reason\).*rollouts\.deadline_s=1"):
        single.generate(units)
    assert time.monotonic() - start < 5
    os.kill(stopped, signal.SIGCONT)


@pytest.mark.ray
def test_more_deaths_than_allowed_stop_the_run_and_say_so(pair, recipe, units, monkeypatch):
    monkeypatch.setattr(pair, "_recipe", changed(recipe, max_restarts=1))
    monkeypatch.setattr(pair, "_num_restarts", 1)
    os.kill(pair.process_ids()[0], signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(RolloutActorsLostError, match=r"died 2 times, more than rollouts\.max_restarts=1"):
        pair.generate(units)


def test_the_deadline_counts_from_the_last_finished_unit():
    now, lines = [0.0], []
    timer = StallTimer(deadline_s=25.0, on_wait=lines.append, clock=lambda: now[0])
    for _ in range(10):
        assert timer.wait_s == 10.0
        now[0] += 20.0
        timer.check("units")
        assert timer.wait_s == 5.0
        timer.note_finished()
    assert lines == ["waiting for units (20 s)"] * 10
    now[0] += 25.0
    assert timer.wait_s == 0.0
    with pytest.raises(RolloutDeadlineError, match=r"nothing finished for 25 s while waiting for units.*deadline_s=25"):
        timer.check("units")


@pytest.mark.parametrize("error", [RolloutActorsLostError, RolloutDeadlineError])
def test_lost_actors_and_deadlines_are_the_user_s_to_mend(error):
    assert issubclass(error, UserError)


def test_rollouts_of_other_weights_stop_the_run():
    sent = PolicyVersion(step=1, kind="adapter", sha256="a")
    _check_version(PolicyVersion(step=1, kind="adapter", sha256="a"), sent)
    with pytest.raises(PolicyVersionMismatchError, match="the learner sent"):
        _check_version(PolicyVersion(step=0, kind="adapter", sha256="b"), sent)


def test_a_pool_without_weights_refuses_to_generate(recipe, units):
    pool = LocalPool(open_policy(recipe.policy, recipe.lora, recipe.seed))
    with pytest.raises(RuntimeError, match=r"call load\(\)"):
        pool.generate(units)
