"""Rollouts from Ray actors, which may die without costing a token."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unigrpo.ray_start import SHUTDOWN_S, RayStalledError, lost_errors, start_ray, within
from unigrpo.rollouts.actor import RolloutActor
from unigrpo.rollouts.base import PolicyVersionMismatchError, RolloutActorsLostError, RolloutDeadlineError
from unigrpo.rollouts.units import WorkUnit, joined
from unigrpo.settings.recipe import Recipe
from unigrpo.types import PolicyVersion, Rollouts

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
SHORTEST_S = 20.0
"""For a call into Ray, however short the deadline of the rollouts is."""
WAIT_S = 10.0
"""Seconds between two lines that say what a long wait is waiting for."""


@dataclass(kw_only=True, slots=True)
class StallTimer:
    """Measures how long nothing has finished, and ends the wait at a deadline."""

    deadline_s: float
    on_wait: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._last = self.clock()

    @property
    def wait_s(self) -> float:
        """Return how long to wait before the next :meth:`check`."""
        return min(WAIT_S, max(0.0, self._last + self.deadline_s - self.clock()))

    def note_finished(self) -> None:
        """Start the clock again: something finished."""
        self._last = self.clock()

    def check(self, what: str) -> None:
        """Say what is waited for, after a wait in which nothing finished.

        Raises:
            RolloutDeadlineError: at the deadline.
        """
        waited = self.clock() - self._last
        if waited >= self.deadline_s:
            raise RolloutDeadlineError(
                f"nothing finished for {waited:.0f} s while waiting for {what}; the limit is "
                f"rollouts.deadline_s={self.deadline_s:g}. Raise it, lower rollouts.rows_per_unit so that a unit is "
                "shorter, or look at the actors' logs for what holds them up"
            )
        if waited >= WAIT_S:
            self.on_wait(f"waiting for {what} ({waited:.0f} s)")


class RayPool:
    """Ray actors; a unit whose actor died is generated again with the same seeds: the same tokens."""

    shares_policy: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, on_wait: Callable[[str], None] = logger.info) -> None:
        """Start Ray on the loopback interface where no cluster is connected, and the actors.

        Args:
            recipe: its policy, LoRA and rollout settings.
            on_wait: is told, every few seconds of a long wait, what is waited for.
        """
        import ray

        self._lost = lost_errors()
        self._ray, self._recipe, self._on_wait = ray, recipe, on_wait
        self._is_owner = not ray.is_initialized()
        start_ray()
        self._num_restarts = 0
        self._weights: tuple[Any, PolicyVersion] | None = None
        self._actors = [self._start() for _ in range(recipe.rollouts.num_actors)]
        for index in range(len(self._actors)):
            self._check_started(index)

    def _start(self) -> Any:
        settings = self._recipe.rollouts
        remote = self._ray.remote(num_cpus=1, num_gpus=settings.num_gpus, max_restarts=0)(RolloutActor)
        arguments = (self._recipe.policy, self._recipe.lora, self._recipe.seed, settings.num_threads)
        return self._ask("start an actor", remote.remote, *arguments)

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call into Ray, which may itself hang."""
        return within(max(self._recipe.rollouts.deadline_s, SHORTEST_S), what, call, *arguments, **options)

    def _check_started(self, index: int) -> None:
        """Wait until an actor has loaded the policy; one that dies at it is replaced."""
        while True:
            try:
                self._wait([self._actors[index].process_id.remote()], "rollout actors to load the policy")
                return
            except self._lost as error:
                self._replace(index, error)

    def process_ids(self) -> list[int]:
        """Return the actors' process ids."""
        return self._wait([actor.process_id.remote() for actor in self._actors], "the actors' process ids")

    def _stall_timer(self) -> StallTimer:
        return StallTimer(deadline_s=self._recipe.rollouts.deadline_s, on_wait=self._on_wait)

    def _wait(self, pending: list[Any], what: str) -> list[Any]:
        """Return the results in order; say what is waited for; stop when none comes before the deadline."""
        timer, num_ready = self._stall_timer(), 0
        while num_ready < len(pending):
            ready, missing = self._look(pending, num_ready + 1, timer.wait_s)
            if len(ready) > num_ready:
                num_ready = len(ready)
                timer.note_finished()
            else:
                timer.check(f"{len(missing)} of {len(pending)}: {what}")
        return self._ask("hand over results", self._ray.get, pending)

    def _look(self, pending: list[Any], num_returns: int, wait_s: float) -> tuple[list[Any], list[Any]]:
        """Return what is ready after at most ``wait_s`` seconds, and what is not."""
        return self._ask("look for results", self._ray.wait, pending, num_returns=num_returns, timeout=wait_s)

    def load(self, state: dict[str, torch.Tensor], version: PolicyVersion) -> None:
        """Put the weights into the object store once and check the version that each actor computes from what it got.

        Raises:
            PolicyVersionMismatchError: if an actor's weights differ from the ones sent.
        """
        from safetensors.torch import save

        packed = self._ask("take the weights", self._ray.put, np.frombuffer(save(state), dtype=np.uint8))
        self._weights = (packed, version)
        answers = [self._send(index) for index in range(len(self._actors))]  # all of them load at the same time
        for index, answer in enumerate(answers):
            self._check_loaded(index, answer)

    def _send(self, index: int) -> Any:
        assert self._weights is not None
        packed, version = self._weights
        return self._actors[index].load.remote(packed, version.step)

    def _check_loaded(self, index: int, answer: Any) -> None:
        """Wait for an actor's echo; an actor that died meanwhile is replaced by one that loads, too."""
        assert self._weights is not None
        while True:
            try:
                (echoed,) = self._wait([answer], "an actor to take the weights")
                break
            except self._lost as error:
                self._replace(index, error)
                answer = self._send(index)
        _check_version(echoed, self._weights[1])

    def _replace(self, index: int, error: Exception) -> None:
        self._num_restarts += 1
        limit = self._recipe.rollouts.max_restarts
        logger.warning("rollout actor %d died (restart %d of %d): %s", index, self._num_restarts, limit, error)
        if self._num_restarts > limit:
            raise RolloutActorsLostError(
                f"rollout actors died {self._num_restarts} times, more than rollouts.max_restarts={limit}; "
                f"the last one said: {error}. A likely cause is memory: lower rollouts.rows_per_unit or num_actors"
            ) from error
        self._actors[index] = self._start()

    def generate(self, units: Sequence[WorkUnit]) -> Rollouts:
        """Return the rollouts of all units, in their order, whatever becomes of single actors.

        Raises:
            RolloutDeadlineError: if no unit finishes for ``rollouts.deadline_s``, naming what was waited for.
            RolloutActorsLostError: after more than ``rollouts.max_restarts`` deaths.
            PolicyVersionMismatchError: if a rollout was made with other weights.
        """
        if self._weights is None:
            raise RuntimeError("the pool has no weights yet; call load() before generate()")
        done: dict[int, Rollouts] = {}
        queue = list(range(len(units)))
        idle = list(range(len(self._actors)))
        running: dict[Any, tuple[int, int]] = {}
        num_redispatched, timer = 0, self._stall_timer()
        while len(done) < len(units):
            while queue and idle:
                unit, actor = queue.pop(0), idle.pop(0)
                reference = self._ask("send a unit", self._actors[actor].generate.remote, units[unit])
                running[reference] = (unit, actor)
            ready, _ = self._look(list(running), 1, timer.wait_s)
            if not ready:
                tasks = sorted({units[unit].prompts[0].task for unit, _ in running.values()})
                timer.check(f"{len(running)} rollout units ({', '.join(tasks)})")
                continue
            unit, actor = running.pop(ready[0])
            try:
                done[unit] = self._ask("hand over a unit", self._ray.get, ready[0])
            except self._lost as error:
                self._replace(actor, error)
                self._check_loaded(actor, self._send(actor))
                queue.insert(0, unit)
                num_redispatched += 1
            idle.append(actor)
            timer.note_finished()  # Also after a death: another actor has loaded the policy meanwhile.
        rollouts = joined([done[unit] for unit in range(len(units))], num_redispatched)
        for rollout in rollouts:
            _check_version(rollout.policy_version, self._weights[1])
        return rollouts

    def close(self) -> None:
        """Stop the actors, and Ray where this pool started it."""
        actors, self._actors = self._actors, []
        try:
            for actor in actors:
                within(SHUTDOWN_S, "end an actor", self._ray.kill, actor)
            if self._is_owner:
                within(SHUTDOWN_S, "shut down", self._ray.shutdown)
        except RayStalledError as error:
            logger.warning("%s", error)


def _check_version(echoed: PolicyVersion, wanted: PolicyVersion) -> None:
    if echoed != wanted:
        raise PolicyVersionMismatchError(
            f"a rollout actor answered with policy {echoed}, but the learner sent {wanted}; the run stops rather than "
            "train on rollouts of other weights"
        )
