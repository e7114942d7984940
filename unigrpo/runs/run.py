"""A run: everything the loop needs, opened from a recipe and closed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unigrpo.data.held_out import held_out_problems
from unigrpo.data.limits import within_limits
from unigrpo.data.sources import JsonlPrompts, PromptSource, load_prompts
from unigrpo.learner.learner import Learner
from unigrpo.methods.advantages.base import Advantage
from unigrpo.methods.loss import make_loss
from unigrpo.models.base import Policy
from unigrpo.models.opening import open_policy, refuse_untrained
from unigrpo.plugin import make
from unigrpo.recipe.doubts import strains
from unigrpo.rewards.runtime.journal import ScoredStep, load_step, save_step
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rollouts.base import RolloutPool
from unigrpo.rollouts.pools import open_pool
from unigrpo.rollouts.units import WorkUnit, plan_units
from unigrpo.runs.alarms import Alarms
from unigrpo.runs.checkpoint import Checkpoint, Saves, latest_checkpoint, save_checkpoint
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.trackers.base import Tracker, Trackers
from unigrpo.seeding import fold
from unigrpo.settings.base import choices_of
from unigrpo.settings.recipe import Recipe
from unigrpo.types import Rollouts

logger = logging.getLogger(__name__)

REWARDS = "rewards"


@dataclass(kw_only=True)
class Run:
    """What the loop works with; it is open as long as ``open_run`` is."""

    recipe: Recipe
    run_dir: Path
    trackers: Trackers
    learner: Learner
    advantage: Advantage
    pool: RolloutPool
    rewards: RewardPool
    prompts: dict[str, PromptSource]
    eval_prompts: dict[str, PromptSource]
    alarms: Alarms
    greedy: Mapping[str, Any]
    """The family's settings of evaluation's greedy pass."""
    saves: Saves
    num_done: int = 0
    """Learner steps that are in the weights."""
    wall_s: float = 0.0
    """Seconds of the run before this process opened it."""
    is_evaluating: bool = False
    """Whether held-out prompts are evaluated between two steps, which a signal need not wait for."""
    unrecorded: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of the last step done, which was stopped in its evaluation and is in no log yet."""
    started: float = field(default_factory=time.monotonic)

    def units(self, step: int) -> list[WorkUnit]:
        """Return the work units of a step: each task's next prompts, in the recipe's order."""
        chosen = [
            (self.prompts[task][step * settings.prompts_per_step + index], settings.sampling)
            for task, settings in self.recipe.tasks.items()
            for index in range(settings.prompts_per_step)
        ]
        size, rows = self.recipe.group_size, self.recipe.rollouts.rows_per_unit
        units = plan_units(chosen, group_size=size, rows_per_unit=rows, seed=self.recipe.seed, step=step)
        return [replace(unit, keeps_features=True) for unit in units]

    def score(self, step: int, rollouts: Rollouts) -> ScoredStep:
        """Return the step's rewards: on disk before they are used, and read back when a resumed run gets there."""
        digest = fold(*(np.ascontiguousarray(rollout.token_ids).tobytes().hex() for rollout in rollouts))
        path = self.run_dir / REWARDS / f"step_{step + 1:06d}-{digest:016x}.json"
        if path.exists():
            scored = load_step(path)
        else:
            scored = self.rewards.score(rollouts, step=step)
            path.parent.mkdir(exist_ok=True)
            save_step(path, scored)
        self.rewards.remember(scored)
        return scored

    def remember_rewards(self) -> None:
        """Know the rewards of the steps done, as if this process had scored them."""
        for path in sorted((self.run_dir / REWARDS).glob("step_*.json")):
            if int(path.name[5:11]) <= self.num_done:
                self.rewards.remember(load_step(path))

    def deliver(self) -> None:
        """Load the learner's weights into the rollout actors; a pool that shares the policy only hears the version."""
        if self.pool.shares_policy:
            self.pool.load({}, self.learner.version(self.num_done))
        else:
            self.pool.load(*self.learner.weights(self.num_done))

    def seconds(self) -> float:
        """Return the wall time of the run so far, earlier processes included."""
        return self.wall_s + time.monotonic() - self.started

    def save(self, *, is_last: bool, unrecorded: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of the steps done; where the disk refuses it, after the next step, unless it is the last.

        ``unrecorded`` are the metrics of the last step, where they are in no log yet.

        Raises:
            StorageError: after ``checkpoint.max_failed_saves`` failures in a row.
        """
        state: dict[str, Any] = {"wall_s": self.seconds(), "seed": self.recipe.seed}
        if unrecorded is not None:
            state["unrecorded"] = unrecorded
        learner, keep = self.learner, self.recipe.checkpoint.keep

        def write() -> None:
            save_checkpoint(self.run_dir, self.num_done, state, learner.save, keep, learner.num_checkpoint_bytes)

        self.saves.save(write, is_last=is_last)


@contextmanager
def open_run(
    recipe: Recipe, run_dir: Path, tracker: Tracker | None = None, *, weights_of: Path | None = None
) -> Iterator[Run]:
    """Open policy, rewards, prompts and actors; go on from the newest checkpoint where there is one.

    Args:
        recipe: of the run.
        run_dir: where it writes.
        tracker: the caller's own, beside the recipe's.
        weights_of: take the checkpoint of this run instead of ``run_dir``'s, and only look at it: a family that cannot
            train its tasks is welcome.

    Raises:
        UserError: if something that the recipe names does not fit.
    """
    for _, chosen in choices_of(recipe):
        make(chosen)  # what a class refuses is known before anything is loaded
    for strain in strains(recipe):
        logger.warning("%s", strain)
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    with ExitStack() as stack:
        trackers = Trackers(recipe.tracking.use, tracker)
        stack.callback(trackers.close)
        trackers.phase("starting rewards")
        rewards = stack.enter_context(RewardPool(recipe.rewards))
        rewards.start()
        trackers.phase("reading prompts")
        prompts, eval_prompts = _prompts(recipe, "train"), _prompts(recipe, "eval")
        if weights_of is None:
            _say_what_is_not_held_out(prompts, eval_prompts)
        trackers.phase("loading the policy")
        policy = open_policy(recipe.policy, recipe.lora, recipe.seed)
        if weights_of is None:
            refuse_untrained(policy, [task.kind for task in recipe.tasks.values()])
        trackers.phase("measuring prompts")
        prompts, eval_prompts = (_limited(recipe, policy, sources) for sources in (prompts, eval_prompts))
        learner = _learner(recipe, policy)
        checkpoint = latest_checkpoint(weights_of or run_dir, learner.load)
        trackers.phase("starting rollout actors" if recipe.rollouts.num_actors else "preparing")
        pool = open_pool(recipe, policy, trackers.phase)
        stack.callback(pool.close)
        trackers.start(recipe, run_dir, checkpoint.step if checkpoint else 0)
        records = read_metrics(run_dir)
        unrecorded = _unrecorded(checkpoint, records)
        run = Run(
            recipe=recipe,
            run_dir=run_dir,
            trackers=trackers,
            learner=learner,
            advantage=make(recipe.advantages),
            pool=pool,
            rewards=rewards,
            prompts=prompts,
            eval_prompts=eval_prompts,
            alarms=Alarms(recipe.rewards, [*records, unrecorded] if unrecorded else records),
            num_done=checkpoint.step if checkpoint else 0,
            wall_s=checkpoint.state.wall_s if checkpoint else 0.0,
            greedy=policy.greedy,
            saves=Saves(recipe.checkpoint),
            unrecorded=unrecorded,
        )
        trackers.phase("waiting for the rewards to load")
        rewards.wait_until_loaded()
        run.remember_rewards()
        yield run


def _unrecorded(checkpoint: Checkpoint | None, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics that a checkpoint keeps of its step, unless they have come into the log since."""
    metrics = checkpoint.state.unrecorded if checkpoint is not None else None
    if not metrics or (records and records[-1]["step"] >= metrics["step"]):
        return {}
    return dict(metrics)


def _prompts(recipe: Recipe, split: Literal["train", "eval"]) -> dict[str, PromptSource]:
    """Return the prompts of each task; a JSONL task without ``eval_jsonl`` has none that are held out."""
    return {
        task: load_prompts(part.data, task, part.kind, split, recipe.seed)
        for task, part in recipe.tasks.items()
        if split == "train" or (recipe.evaluate.enabled and (part.data.use or part.data.eval_jsonl) is not None)
    }


def _say_what_is_not_held_out(train: dict[str, PromptSource], held_out: dict[str, PromptSource]) -> None:
    asked = [
        {source.path: source.asked() for source in side.values() if isinstance(source, JsonlPrompts)}
        for side in (train, held_out)
    ]
    for problem in held_out_problems(*asked):
        logger.warning(problem)


def _limited(recipe: Recipe, policy: Policy, sources: dict[str, PromptSource]) -> dict[str, PromptSource]:
    """Return the prompts of each task, none of them too long for the policy."""
    return {
        task: within_limits(
            source,
            policy,
            recipe.tasks[task].data,
            task=task,
            completion_length=recipe.tasks[task].sampling.completion_length,
        )
        for task, source in sources.items()
    }


def _learner(recipe: Recipe, policy: Policy) -> Learner:
    loss, reference = make_loss(recipe.ratio, recipe.objective, recipe.kl), None
    if not recipe.lora.enabled and loss.needs_reference:
        reference = open_policy(recipe.policy, recipe.lora, recipe.seed, is_frozen=True)
    return Learner(policy, reference, make(recipe.estimator), loss, recipe.learner, recipe.num_steps)
