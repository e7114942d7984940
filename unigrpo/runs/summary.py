"""How a run ends: summary.json and the film strip."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.files import json_text, write_atomically
from unigrpo.rollouts.units import plan_units
from unigrpo.runs.changes import changes_made
from unigrpo.runs.course import order_note
from unigrpo.runs.directory import SUMMARY
from unigrpo.runs.records import Summary, read_evaluation, read_record
from unigrpo.runs.run import Run
from unigrpo.runs.samples import write_film


def save_evaluation(run_dir: Path, name: str, metrics: Mapping[str, float | None], step: int) -> None:
    """Keep an evaluation for the summary, and for a run that is resumed, with the steps that were done before it."""
    write_atomically(_place(run_dir, name), json_text({**metrics, "step": step}, indent=1))


def saved_evaluation(run_dir: Path, name: str, step: int | None = None) -> dict[str, float | None]:
    """Return an evaluation that was finished earlier; empty where there is none, or none after that many steps.

    Raises:
        UserError: if somebody has touched it.
    """
    path = _place(run_dir, name)
    metrics = read_evaluation(path) if path.exists() else {}
    done = metrics.pop("step", None)
    return metrics if step is None or done == step else {}


def retire_end(run_dir: Path) -> None:
    """Take the end from a run that goes on: no summary, and its last evaluation is one of those during the run."""
    path = _place(run_dir, "after")
    step = read_evaluation(path).get("step") if path.exists() else None
    if step is not None and not (place := run_dir / f"eval_step_{int(step):06d}").exists():
        path.parent.rename(place)
    elif path.parent.exists():
        shutil.rmtree(path.parent)
    (run_dir / SUMMARY).unlink(missing_ok=True)


def _place(run_dir: Path, name: str) -> Path:
    return run_dir / f"eval_{name}" / "metrics.json"


def finished_summary(run_dir: Path) -> Summary | None:
    """Return the summary of a run that has ended; None while there is more to do.

    Raises:
        UserError: if somebody has touched it.
    """
    path = run_dir / SUMMARY
    return read_record(Summary, path, "delete it and resume the run, to write it again") if path.exists() else None


def finish(run: Run, before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Mapping[str, Any]:
    """Write the film and the summary; return the summary."""
    pictures = next((name for name in run.eval_prompts if run.recipe.tasks[name].kind == "imagine"), None)
    if pictures is not None:
        run.deliver()  # a run that was stopped after its last evaluation has not delivered yet
        _film(run, pictures)
    course = run.alarms.course()
    orders = [order_note(task, before, after) for task in run.recipe.tasks]
    summary = {
        "eval_before": before,
        "eval_after": after,
        "num_steps": run.num_done,
        "wall_s": run.seconds(),
        "seed": run.recipe.seed,
        "status": course.status,
        "alarms": course.alarms,
        "notes": [*course.notes(), *filter(None, orders)],
        **changes_made(run.run_dir),
    }
    write_atomically(run.run_dir / SUMMARY, json_text(summary, indent=1))
    return summary


def _film(run: Run, task: str) -> None:
    """Draw one held-out picture of a task greedily and write a frame a denoising step."""
    sampling = run.recipe.tasks[task].sampling.model_copy(update={"temperature": 0.0, "remasking_temperature": 0.0})
    units = plan_units(
        [(run.eval_prompts[task][0], sampling)], group_size=1, rows_per_unit=1, seed=run.recipe.seed, step=-1
    )
    write_film(run.run_dir / "film", run.learner.decode_image, run.pool.generate(units)[0])
