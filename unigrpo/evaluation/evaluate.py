"""Held-out prompts: mean reward at temperature 1, greedy accuracy, and the samples that people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np

from unigrpo.files import json_text, usable, write_atomically
from unigrpo.reward_table import RewardTable, disagreement
from unigrpo.rollouts.units import plan_units
from unigrpo.runs.nan_statistics import nan_mean, number_or_none, standard_error
from unigrpo.runs.run import Run, open_run
from unigrpo.runs.trackers.base import Samples, Tracker
from unigrpo.seeding import fold
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.runs import TrackerChoice, TrackingSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Rollout, Rollouts

EVAL_STEP = -1
"""Takes the place of the step in the row seeds, so that every evaluation of a run draws the same noise."""
NUM_SHOWN = 12
"""Samples a task that are written with their pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScores:
    """One task's held-out prompts."""

    sampled: Sequence[Rollout]
    """[n] completions at temperature 1."""
    sampled_table: RewardTable
    greedy: Sequence[Rollout]
    greedy_table: RewardTable


def evaluate(run: Run, name: str) -> dict[str, float]:
    """Evaluate the policy that the pool holds and write ``eval_<name>/``: before, after, or a step.

    Returns:
        ``eval/<task>/reward`` (mean reward at temperature 1, each of its parts mapped to [0, 1]), ``reward_se``,
        ``optimized`` (mean of the sum of value times weight, which training adds), ``optimized_se``,
        ``misordered_fraction`` (of the completions, those that the two order otherwise), ``accuracy`` (greedy),
        ``accuracy_se``, ``n`` and ``rewards/<name>`` (mean at temperature 1) of every task.
    """
    folder = run.run_dir / f"eval_{name}"
    folder.mkdir(exist_ok=True)
    metrics: dict[str, float] = {}
    scores: dict[str, TaskScores] = {}
    tasks = list(run.eval_prompts)
    for index, task in enumerate(tasks):
        run.trackers.progress(index, len(tasks), f"evaluating {task}")
        scores[task] = _score(run, task)
        metrics |= _metrics(run, task, scores[task])
    run.trackers.progress(len(tasks), len(tasks), "evaluated")
    _write_scores(folder, scores)
    shown = [
        (rollout, found.sampled_table, row)
        for found in scores.values()
        for row, rollout in enumerate(found.sampled[:NUM_SHOWN])
    ]
    run.trackers.samples(Samples(name=f"eval_{name}", step=run.num_done, rows=shown))
    return metrics


def evaluate_run(recipe: Recipe, run_dir: Path | None, tracker: Tracker | None = None) -> dict[str, float]:
    """Evaluate a recipe's policy, or a run's newest checkpoint; nothing is written into the run.

    ``run_dir`` is the run whose checkpoint is meant; None is the policy as it stands before training.

    Returns:
        As ``evaluate``.
    """
    quiet = recipe.model_copy(update={"tracking": TrackingSettings(use=[TrackerChoice(use="jsonl")])})
    with usable(Path("TMPDIR")):
        place = gettempdir()
    with TemporaryDirectory(dir=place) as folder, open_run(quiet, Path(folder), tracker, weights_of=run_dir) as run:
        run.deliver()
        run.trackers.phase("evaluating")
        return evaluate(run, "now")


def _score(run: Run, task: str) -> TaskScores:
    source, settings = run.eval_prompts[task], run.recipe.tasks[task].sampling
    count = run.recipe.evaluate.num_prompts
    count = count if source.num_prompts is None else min(count, source.num_prompts)
    prompts = [source[index] for index in range(count)]

    def rollouts(changes: Mapping[str, Any]) -> Rollouts:
        sampling = SamplingSettings.model_validate({**dict(settings), **changes})
        units = plan_units(
            [(prompt, sampling) for prompt in prompts],
            group_size=1,
            seed=fold(run.recipe.seed, "eval"),
            rows_per_unit=run.recipe.rollouts.rows_per_unit,
            step=EVAL_STEP,
        )
        return run.pool.generate(units)

    sampled, greedy = rollouts({"temperature": 1.0}), rollouts(run.greedy)
    table = run.rewards.score([*sampled, *greedy]).table  # Not remembered: a resumed run may not evaluate again.
    return TaskScores(
        sampled=sampled,
        sampled_table=_rows(table, slice(0, count)),
        greedy=greedy,
        greedy_table=_rows(table, slice(count, None)),
    )


def _rows(table: RewardTable, rows: slice) -> RewardTable:
    return replace(table, values=table.values[rows], status=table.status[rows])


def _metrics(run: Run, task: str, scores: TaskScores) -> dict[str, float]:
    reward, optimized = scores.sampled_table.unit_total, scores.sampled_table.total
    metrics = {"reward": nan_mean(reward), "reward_se": standard_error(reward), "n": float(len(reward))}
    metrics |= {"optimized": nan_mean(optimized), "optimized_se": standard_error(optimized)}
    wrong = disagreement(optimized, reward)
    metrics["misordered_fraction"] = wrong.num_rows / len(reward) if wrong else 0.0
    if task in run.recipe.evaluate.accuracy:
        passed = _passed(scores.greedy_table, run.recipe.evaluate.accuracy[task])
        metrics |= {"accuracy": nan_mean(passed), "accuracy_se": standard_error(passed)}
    for column, name in enumerate(scores.sampled_table.names):
        values = scores.sampled_table.values[:, column]
        if not np.isnan(values).all():
            metrics[f"rewards/{name}"] = nan_mean(values)
    return {f"eval/{task}/{name}": value for name, value in metrics.items()}


def _passed(table: RewardTable, name: str) -> np.ndarray:
    """Return [n] float: 1 where a completion passes the reward of that name, 0 where not, NaN where nothing counts."""
    column = table.names.index(name)
    return np.where(np.isnan(table.counted[:, column]), np.nan, table.is_passed[:, column])


def _write_scores(folder: Path, scores: dict[str, TaskScores]) -> None:
    """Write every prompt's scores, so that two evaluations can be compared prompt by prompt."""
    lines = []
    for task, found in scores.items():
        for row, rollout in enumerate(found.sampled):
            record = {
                "task": task,
                "id": rollout.prompt.id,
                "reward": number_or_none(found.sampled_table.unit_total[row]),
                "optimized": number_or_none(found.sampled_table.total[row]),
                "rewards": found.sampled_table.values_of(row),
                "passed": found.sampled_table.passed_of(row),
                "greedy_rewards": found.greedy_table.values_of(row),
                "greedy_passed": found.greedy_table.passed_of(row),
            }
            lines.append(json_text(record))
    write_atomically(folder / "scores.jsonl", "\n".join(lines) + "\n")
