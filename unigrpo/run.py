"""A run: its directory, and everything the loop needs, opened from a recipe and closed again."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unigrpo.alarms import Alarms
from unigrpo.checkpoint import FOLDER, Checkpoint, latest_checkpoint, save_checkpoint
from unigrpo.data import PromptSource, load_prompts
from unigrpo.errors import UserError
from unigrpo.files import write_atomically
from unigrpo.learner import Learner
from unigrpo.learner_group import LearnerGroup
from unigrpo.metrics import MetricLog, read_metrics
from unigrpo.models.adapter import save_adapter
from unigrpo.models.opening import open_policy
from unigrpo.observer import Observer
from unigrpo.plugin import resolve
from unigrpo.recipe import dump_recipe, load_recipe
from unigrpo.rewards.pool import RewardPool
from unigrpo.rewards.runtime.journal import ScoredStep, load_step, save_step
from unigrpo.rollouts.engine import WorkUnit, plan_units
from unigrpo.rollouts.pool import open_pool
from unigrpo.seeding import fold
from unigrpo.settings import Recipe
from unigrpo.tracking import TensorBoard
from unigrpo.types import Rollout, Task

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.rollouts.base import RolloutPool

RECIPE, ENVIRONMENT, SUMMARY, LOCK = "recipe.yaml", "environment.json", "summary.json", ".lock"
REWARDS = "rewards"
PACKAGES = ("torch", "transformers", "peft", "ray", "numpy", "safetensors", "open_clip_torch", "math-verify", "unigrpo")


@dataclass(kw_only=True)
class Run:
    """What the loop works with; it is open as long as ``open_run`` is."""

    recipe: Recipe
    run_dir: Path
    observer: Observer
    policy: Policy
    learner: LearnerGroup
    pool: RolloutPool
    rewards: RewardPool
    prompts: dict[Task, PromptSource]
    eval_prompts: dict[Task, PromptSource]
    log: MetricLog
    alarms: Alarms
    tensorboard: TensorBoard | None
    num_done: int = 0
    """Learner steps that are in the weights."""
    wall_s: float = 0.0
    """Seconds of the run before this process opened it."""
    started: float = field(default_factory=time.monotonic)

    def units(self, step: int) -> list[WorkUnit]:
        """Return the work units of a step: each task's next prompts, in the recipe's order."""
        chosen = [
            (self.prompts[task][step * settings.prompts_per_step + index], settings.sampling)
            for task, settings in self.recipe.tasks.items()
            for index in range(settings.prompts_per_step)
        ]
        return plan_units(
            chosen, group_size=self.recipe.group_size, rows_per_unit=self.recipe.rollouts.rows_per_unit,
            seed=self.recipe.seed, step=step,
        )  # fmt: skip

    def score(self, step: int, rollouts: list[Rollout]) -> ScoredStep:
        """Return the step's rewards: on disk before they are used, and read back when a resumed run gets there."""
        digest = fold(*(np.ascontiguousarray(rollout.token_ids).tobytes().hex() for rollout in rollouts))
        path = self.run_dir / REWARDS / f"step_{step + 1:06d}-{digest:016x}.json"
        if path.exists():
            scored = load_step(path)
        else:
            table = self.rewards.score(rollouts, step=step, remember=False)
            scored = ScoredStep(table=table, keys=self.rewards.last_keys, metrics=self.rewards.metrics())
            path.parent.mkdir(exist_ok=True)
            save_step(path, scored)
        self.rewards.remember(scored.table, scored.keys)
        return scored

    def remember_rewards(self) -> None:
        """Know the rewards of the steps done, as if this process had scored them."""
        for path in sorted((self.run_dir / REWARDS).glob("step_*.json")):
            if int(path.name[5:11]) <= self.num_done:
                scored = load_step(path)
                self.rewards.remember(scored.table, scored.keys)

    def deliver(self) -> None:
        """Load the learner's weights into every rollout actor."""
        self.pool.load(*self.learner.weights(self.num_done))

    def seconds(self) -> float:
        """Return the wall time of the run so far, earlier processes included."""
        return self.wall_s + time.monotonic() - self.started

    def save(self) -> Checkpoint:
        """Write a checkpoint of the steps done."""
        return save_checkpoint(
            self.run_dir, self.num_done, {"wall_s": self.seconds(), "seed": self.recipe.seed}, self._write_tensors,
            self.recipe.checkpoint.keep,
        )  # fmt: skip

    def _write_tensors(self, folder: Path) -> None:
        from safetensors.torch import save_file

        weights, optimizer = self.learner.state()
        if self.recipe.lora.enabled:
            save_adapter(self.policy, folder / "adapter")
        else:
            save_file(weights, folder / "model.safetensors")
        save_file(optimizer, folder / "optimizer.safetensors")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take weights, optimiser and position from a checkpoint."""
        from safetensors.torch import load_file

        lora = checkpoint.folder / "adapter" / "adapter_model.safetensors"
        weights = load_file(lora if lora.exists() else checkpoint.folder / "model.safetensors")
        self.learner.load_state(weights, load_file(checkpoint.folder / "optimizer.safetensors"))
        self.num_done, self.wall_s = checkpoint.step, checkpoint.state["wall_s"]


def create_run_dir(recipe: Recipe, run_dir: Path) -> None:
    """Make a run directory with the resolved recipe and what it runs on.

    Raises:
        UserError: if it exists and is not empty: runs never share a directory.
    """
    if run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"{run_dir} is not empty; choose another --out, or go on with it: unigrpo resume {run_dir}")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / ENVIRONMENT, json.dumps(environment(), indent=1))
    dump_recipe(recipe, run_dir / RECIPE)


def clear_without_result(run_dir: Path) -> None:
    """Empty a run directory without an evaluation or a step, so that the same command can be tried again."""
    has_result = any(run_dir.glob("eval_*/metrics.json")) or any(run_dir.glob(f"{FOLDER}/step_*"))
    if has_result or read_metrics(run_dir) or (run_dir / SUMMARY).exists():
        return
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep a run directory to this process; the lock goes with the process, also by SIGKILL.

    Raises:
        UserError: if another process works in it.
    """
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"process {file.read().strip() or 'unknown'} works in {run_dir}; wait until it ends, or stop it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def environment() -> dict[str, Any]:
    """Return what a run runs on: Python, platform, cores, GPUs and the versions that matter."""
    return {
        "python": platform.python_version(), "platform": platform.platform(), "num_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def read_run(run_dir: Path) -> Recipe:
    """Return the recipe of an existing run.

    Raises:
        UserError: if the folder holds no run.
    """
    if not (run_dir / RECIPE).is_file():
        raise UserError(f"{run_dir} has no {RECIPE}, so it is no run directory; start one with unigrpo train")
    return load_recipe(run_dir / RECIPE)


@contextmanager
def open_run(recipe: Recipe, run_dir: Path, observer: Observer, *, weights_of: Path | None = None) -> Iterator[Run]:
    """Open policy, rewards, prompts and actors; go on from the newest checkpoint where there is one.

    Args:
        recipe: of the run.
        run_dir: where it writes.
        observer: hears of the phases.
        weights_of: take the checkpoint of this run instead of ``run_dir``'s.
    """
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    with ExitStack() as stack:
        stack.enter_context(locked(run_dir))
        observer.phase("starting rewards")
        rewards = stack.enter_context(RewardPool(recipe.rewards))
        rewards.start()
        observer.phase("reading prompts")
        prompts = {task: load_prompts(part.data, task, "train", recipe.seed) for task, part in recipe.tasks.items()}
        observer.phase("loading the policy")
        policy = open_policy(recipe.policy, recipe.lora, recipe.seed)
        checkpoint = latest_checkpoint(weights_of or run_dir)
        learner = LearnerGroup(policy, _learner(recipe, policy))
        observer.phase("starting rollout actors" if recipe.rollouts.num_actors else "preparing")
        pool = open_pool(recipe, policy, observer.phase)
        stack.callback(pool.close)
        log = stack.enter_context(MetricLog(run_dir, resumed_step=checkpoint.step if checkpoint else 0))
        tensorboard = None
        if recipe.tracking.tensorboard:
            tensorboard = TensorBoard(run_dir, resumed_step=checkpoint.step if checkpoint else None)
            stack.callback(tensorboard.close)
        run = Run(
            recipe=recipe, run_dir=run_dir, observer=observer, policy=policy, learner=learner, pool=pool,
            rewards=rewards, prompts=prompts, eval_prompts=_eval_prompts(recipe), log=log, tensorboard=tensorboard,
            alarms=Alarms(recipe.rewards, read_metrics(run_dir)),
        )  # fmt: skip
        if checkpoint is not None:
            run.restore(checkpoint)
        observer.phase("waiting for the rewards to load")
        rewards.wait_until_loaded()
        run.remember_rewards()
        yield run


def _eval_prompts(recipe: Recipe) -> dict[Task, PromptSource]:
    """Return the held-out prompts of each task; a JSONL task without ``eval_jsonl`` has none."""
    return {
        task: load_prompts(part.data, task, "eval", recipe.seed)
        for task, part in recipe.tasks.items()
        if recipe.evaluate.enabled and (part.data.use is not None or part.data.eval_jsonl is not None)
    }


def _learner(recipe: Recipe, policy: Policy) -> Learner:
    reference = None
    if not recipe.lora.enabled and recipe.objective.kl_coef > 0:
        reference = open_policy(recipe.policy, recipe.lora, recipe.seed, is_frozen=True)
    make_estimator: Any = resolve(recipe.estimator.use)
    estimator = make_estimator(**recipe.estimator.arguments)
    return Learner(policy, reference, estimator, recipe.objective, recipe.learner, recipe.num_steps)
