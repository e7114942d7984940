"""The loop: UniGRPO (MMaDA, arXiv 2505.15809, Algorithm 1), for text, picture questions and pictures in one batch.

Departures from the paper are named where they are made: the spacing of the mask ratios and the normaliser of the loss
(methods.estimators.unigrpo), the KL estimator (methods.kl). The recipe sets what the paper leaves open: G, mu, epsilon,
beta, the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigrpo.evaluation.evaluate import evaluate
from unigrpo.methods.groups import group_advantages
from unigrpo.runs.changes import Change, described, planned_changes, record_changes
from unigrpo.runs.checkpoint import newest_step
from unigrpo.runs.directory import new_run, old_run, read_recipe
from unigrpo.runs.identity import check_identity
from unigrpo.runs.metrics import StepTimer
from unigrpo.runs.run import Run, open_run
from unigrpo.runs.step_metrics import step_metrics
from unigrpo.runs.stopping import ScoringStopped, stop_requests
from unigrpo.runs.summary import finish, finished_summary, retire_end, save_evaluation, saved_evaluation
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


def train(recipe: Recipe, run_dir: Path, tracker: Tracker | None = None, *, has_lock: bool = True) -> Mapping[str, Any]:
    """Run a recipe from its start in a new directory, and return the summary.

    A run that fails before it has a result (a file that cannot be read, a policy that does not fit) leaves nothing.
    ``tracker`` hears of it beside the recipe's own; ``has_lock`` is false where the file system has no locks.

    Raises:
        UserError: if the directory is in use or something the recipe names does not fit.
    """
    with new_run(recipe, run_dir, has_lock=has_lock):
        return _run(recipe, run_dir, tracker)


def resume(
    run_dir: Path,
    tracker: Tracker | None = None,
    overrides: Sequence[str] = (),
    *,
    has_lock: bool = True,
    accepts_changes: bool = False,
) -> Mapping[str, Any]:
    """Go on with a run that was stopped, at whatever moment; it ends as if it had not been.

    ``overrides``, ``key.path=value``, hold from here on and are kept in the run with the step
    (`unigrpo.runs.changes`); a finished run goes on to a larger ``num_steps`` and is evaluated again there.

    Raises:
        UserError: if the folder holds no run, an override would make its steps other than the recipe says, or data,
            code or base changed since it began and ``accepts_changes`` does not say that it may go on with them.
    """
    recipe, changes = _planned(run_dir, overrides)
    summary = finished_summary(run_dir)
    if summary is not None and not changes and summary.num_steps >= recipe.num_steps:
        if tracker is not None:
            tracker.phase("this run has finished already")
        return summary.model_dump(exclude_unset=True)
    with old_run(run_dir, has_lock=has_lock):
        recipe, changes = _planned(run_dir, overrides)  # Again: another process may have worked here until now.
        check_identity(recipe, run_dir, accepts_changes=accepts_changes)
        return _run(recipe, run_dir, tracker, changes)


def _planned(run_dir: Path, overrides: Sequence[str]) -> tuple[Recipe, list[Change]]:
    wanted = read_recipe(run_dir, overrides)
    stored = read_recipe(run_dir) if overrides else wanted
    return wanted, planned_changes(run_dir, stored, wanted, newest_step(run_dir))


def _run(recipe: Recipe, run_dir: Path, tracker: Tracker | None, changes: Sequence[Change] = ()) -> Mapping[str, Any]:
    with open_run(recipe, run_dir, tracker) as run:
        _take_over(run, changes)
        before = _evaluated(run, "before") if run.num_done == 0 else saved_evaluation(run_dir, "before")
        run.trackers.phase("training")
        with stop_requests(lambda: run.rewards.is_scoring or run.is_evaluating) as is_asked:
            if run.unrecorded:
                _record(run, dict(run.unrecorded))
            while run.num_done < recipe.num_steps:
                _record(run, _step_or_save(run))
                is_last = run.num_done == recipe.num_steps or is_asked()
                if is_last or run.saves.is_due(run.num_done):
                    run.save(is_last=is_last)
                if is_asked():
                    raise is_asked.error()
        summary = finish(run, before, _evaluated(run, "after"))
        run.trackers.done(summary)
        return summary


def _take_over(run: Run, changes: Sequence[Change]) -> None:
    """Write down what a resumed run changes, now that everything of it is open; its old end is none any more."""
    if any(one.key == "num_steps" or one.key.startswith("evaluate.") for one in changes):
        retire_end(run.run_dir)
    record_changes(run.run_dir, run.recipe, changes, run.num_done)
    for key, text in described(changes).items():
        run.trackers.phase(f"{key}: {text}")


def _step_or_save(run: Run) -> dict[str, Any]:
    """Take a step; where its scoring is stopped, nothing is learnt from it, and the steps before are saved."""
    try:
        return train_step(run)
    except ScoringStopped:
        run.save(is_last=True)
        raise


def _record(run: Run, metrics: dict[str, Any]) -> None:
    """Log a step's metrics, with an evaluation where one is due; one that is stopped is taken up by `resume`."""
    settings = run.recipe.evaluate
    if settings.enabled and settings.every and run.num_done % settings.every == 0:
        run.deliver()
        try:
            run.is_evaluating = True
            metrics |= evaluate(run, f"step_{run.num_done:06d}")
        except ScoringStopped:
            run.save(is_last=True, unrecorded=metrics)
            raise
        finally:
            run.is_evaluating = False
    run.trackers.step(metrics)


def _evaluated(run: Run, name: str) -> Mapping[str, float | None]:
    """Evaluate the policy as it is, unless that was done before the run was stopped."""
    if not run.recipe.evaluate.enabled:
        return {}
    found = saved_evaluation(run.run_dir, name, run.num_done)
    if found:
        return found
    run.trackers.phase(f"evaluating {name}")
    run.deliver()
    metrics = evaluate(run, name)
    save_evaluation(run.run_dir, name, metrics, run.num_done)
    return metrics
