"""The loop: UniGRPO (MMaDA, arXiv 2505.15809, Algorithm 1), for text, picture questions and pictures in one batch.

Departures from the paper are named where they are made: the spacing of the mask ratios and the normaliser of the loss
(methods.estimators.unigrpo), the KL estimator (methods.kl). The recipe sets what the paper leaves open: G, mu, epsilon,
beta, the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.evaluation.evaluate import evaluate
from unigrpo.methods.groups import group_advantages
from unigrpo.runs.directory import clear_without_result, create_run_dir, read_run
from unigrpo.runs.identity import check_identity, record_identity
from unigrpo.runs.metrics import StepTimer
from unigrpo.runs.run import Run, open_run
from unigrpo.runs.step_metrics import step_metrics
from unigrpo.runs.stopping import ScoringStopped, stop_requests
from unigrpo.runs.summary import finish, finished_summary, save_evaluation, saved_evaluation
from unigrpo.runs.trackers.base import Samples, Tracker
from unigrpo.seeding import fold
from unigrpo.settings.recipe import Recipe


def train_step(run: Run) -> dict[str, Any]:
    """Take one step of UniGRPO and return its metrics."""
    recipe, step, timer = run.recipe, run.num_done, StepTimer()
    with timer.part("sync"):
        run.deliver()  # the old policy becomes the policy
    with timer.part("rollout"):
        rollouts = run.pool.generate(run.units(step))  # G completions of each of P prompts
    with timer.part("reward"):
        scored = run.score(step, rollouts)
    advantages = group_advantages(
        scored.table, rollouts.group_ids, run.advantage, recipe.advantages, fold(recipe.seed, step)
    )
    with timer.part("logprobs"):  # mu draws; old and reference log-probs on the same draws
        begun = run.learner.begin(step, rollouts, advantages.values)
    with timer.part("update"):
        updates = [begun.update(n) for n in range(begun.num_updates)]
    run.num_done = step + 1
    if recipe.tracking.rollouts_every and run.num_done % recipe.tracking.rollouts_every == 0:
        rows = [(rollout, scored.table, row) for row, rollout in enumerate(rollouts)]
        run.trackers.samples(Samples(name="rollouts", step=run.num_done, rows=rows))
    return step_metrics(run, rollouts, scored, advantages, updates, timer)


def train(recipe: Recipe, run_dir: Path, tracker: Tracker | None = None) -> Mapping[str, Any]:
    """Run a recipe from its start in a new directory, and return the summary.

    A run that fails before it has a result (a file that cannot be read, a policy that does not fit) leaves nothing.
    ``tracker`` hears of it beside the recipe's own.

    Raises:
        UserError: if the directory is in use or something the recipe names does not fit.
    """
    create_run_dir(recipe, run_dir)
    try:
        record_identity(recipe, run_dir)
        return _run(recipe, run_dir, tracker)
    finally:
        clear_without_result(run_dir)


def resume(run_dir: Path, tracker: Tracker | None = None, *, accepts_changes: bool = False) -> Mapping[str, Any]:
    """Go on with a run that was stopped, at whatever moment; it ends as if it had not been.

    Raises:
        UserError: if the folder holds no run, or data, code or base changed since it began and ``accepts_changes`` does
            not say that it may go on with them.
    """
    recipe = read_run(run_dir)
    summary = finished_summary(run_dir)
    if summary is None or summary.num_steps < recipe.num_steps:
        check_identity(recipe, run_dir, accepts_changes=accepts_changes)
        return _run(recipe, run_dir, tracker)
    if tracker is not None:
        tracker.phase("this run has finished already")
    return summary.model_dump(exclude_unset=True)


def _run(recipe: Recipe, run_dir: Path, tracker: Tracker | None) -> Mapping[str, Any]:
    with open_run(recipe, run_dir, tracker) as run:
        before = _evaluated(run, "before") if run.num_done == 0 else saved_evaluation(run_dir, "before")
        run.trackers.phase("training")
        with stop_requests(lambda: run.rewards.is_scoring) as is_asked:
            while run.num_done < recipe.num_steps:
                _record(run, _step_or_save(run))
                every, is_stopping = recipe.checkpoint.every, is_asked()
                if run.num_done == recipe.num_steps or (every and run.num_done % every == 0) or is_stopping:
                    run.save()
                if is_stopping:
                    raise KeyboardInterrupt
        summary = finish(run, before, _evaluated(run, "after"))
        run.trackers.done(summary)
        return summary


def _step_or_save(run: Run) -> dict[str, Any]:
    """Take a step; where its scoring is stopped, nothing is learnt from it, and the steps before are saved."""
    try:
        return train_step(run)
    except ScoringStopped:
        run.save()
        raise


def _record(run: Run, metrics: dict[str, Any]) -> None:
    """Log a step's metrics, with an evaluation where one is due."""
    settings = run.recipe.evaluate
    if settings.enabled and settings.every and run.num_done % settings.every == 0:
        run.deliver()
        metrics |= evaluate(run, f"step_{run.num_done:06d}")
    run.trackers.step(metrics)


def _evaluated(run: Run, name: str) -> Mapping[str, float | None]:
    """Evaluate the policy as it is, unless that was done before the run was stopped."""
    if not run.recipe.evaluate.enabled:
        return {}
    found = saved_evaluation(run.run_dir, name)
    if found:
        return found
    run.trackers.phase(f"evaluating {name}")
    run.deliver()
    metrics = evaluate(run, name)
    save_evaluation(run.run_dir, name, metrics)
    return metrics
