"""The report: one HTML file that needs nothing else, about one run or several.

Before and after by task with 95 % intervals, the curves of training, pictures, completions, recipe and environment.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unigrpo.report.data import Change, Estimate, RunData, Sample, read_run, score_of
from unigrpo.report.figures import Point, Series, change_bar, line_chart, share_bar
from unigrpo.report.page import write_page
from unigrpo.runs.alarms import MEANING, about, alarms_of
from unigrpo.runs.nan_statistics import number_or_none

TEMPLATE = "report.html"
COLORS = {"reason": "var(--reason)", "understand": "var(--understand)", "imagine": "var(--imagine)"}
PALETTE = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
NUM_PICTURES = 12
NUM_COMPLETIONS = 6
"""Samples a task that are shown."""

OPTIMIZATION = {
    "kl": "KL to the reference, nats",
    "clip_ratio/region_mean": "clipped fraction",
    "entropy": "entropy, nats",
    "mask_ratio": "mask ratio",
    "ratio_mean": "mean ratio",
    "grad_norm": "gradient norm",
    "loss": "loss",
    "frac_reward_zero_std": "groups with equal rewards",
    "completions/mean_length": "completion length, tokens",
    "timing_s/step": "seconds a step",
    "perf/tokens_per_s": "generated tokens a second",
    "memory/peak_gb": "peak memory, GB",
}

METRICS = {
    "optimized": "sum of value times weight, as optimised",
    "misordered_fraction": "completions that the two order otherwise",
}
"""Titles of held-out metrics whose name does not say enough."""


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML file about runs; it is there whole or not at all.

    Parts of a run that are missing are left out.

    Returns:
        The file.

    Raises:
        UserError: if a directory is none, or its metrics are damaged.
    """
    runs = [read_run(Path(folder)) for folder in run_dirs]
    return write_page(
        out,
        TEMPLATE,
        title=" · ".join(dict.fromkeys(run.name for run in runs)),
        runs=[_sections(run) for run in runs],
        comparison=_comparison(runs),
    )


def _sections(run: RunData) -> dict[str, Any]:
    """Return what the template shows of a run; figures are ready markup, everything else is escaped there."""
    return {
        "name": run.name,
        "description": str(run.recipe.get("description") or ""),
        "facts": list(_facts(run)),
        "headline": [_headline(run, task) for task in run.tasks if any(c.task == task for c in run.changes)],
        "reward_charts": _kept(_reward_charts(run)),
        "part_charts": _kept(_part_charts(run)),
        "optimization_charts": _kept(_optimization_charts(run)),
        "time_share": _time_share(run.records),
        "pictures": [s for s in run.samples if _has_picture(s)][:NUM_PICTURES],
        "film": run.film,
        "completions": {
            task: [s for s in run.samples if s.task == task and not _has_picture(s)][:NUM_COMPLETIONS]
            for task in run.tasks
        },
        "recipe": run.recipe_text,
        "environment": json.dumps(run.environment, indent=2, ensure_ascii=False) if run.environment else "",
    }


def _facts(run: RunData) -> Iterator[tuple[str, str]]:
    policy = run.recipe.get("policy") or {}
    yield "status", str(run.summary.get("status") or "unfinished")
    num_steps = run.summary.get("num_steps") or (run.records[-1]["step"] if run.records else 0)
    yield "steps", f"{num_steps:,}"
    seconds = run.summary.get("wall_s")
    if isinstance(seconds, int | float):
        yield "time", _duration(seconds)
    stated = {"seed": run.summary.get("seed", run.recipe.get("seed")), "policy": policy.get("path")}
    stated["device"] = policy.get("device")
    yield from ((name, str(value)) for name, value in stated.items() if value is not None)
    yield from run.recipe_changes.items()
    yield from _alarms(run.records)
    notes = run.summary.get("notes")
    yield from (("note", str(note)) for note in (notes if isinstance(notes, list) else ()))
    yield "folder", run.folder.name


def _alarms(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each alarm that was set: what it was about, how often and when last, and whether that is bad."""
    steps: dict[str, list[int]] = {}
    named: dict[str, str] = {}
    for record in records:
        for name in alarms_of(record):
            steps.setdefault(name, []).append(int(record["step"]))
            named[name] = about(record, name) or named.get(name, "")
    for name, when in steps.items():
        of = f"{named[name]}: " if named[name] else ""
        meaning = f"; {MEANING[name]}" if name in MEANING else ""
        yield (
            f"alarm: {name.replace('_', ' ')}",
            f"{of}{len(when)} of {len(records)} steps, last at {when[-1]}{meaning}",
        )


def _headline(run: RunData, task: str) -> dict[str, Any]:
    changes = [change for change in run.changes if change.task == task]
    main = next((change for change in changes if change.metric == "reward"), changes[0])
    color = _color(run, task)
    return {
        **_change_texts(main),
        "task": task,
        "color": color,
        "bar": change_bar(main, color),
        "num_prompts": main.num_prompts,
        "rows": [_change_texts(change) for change in changes if change is not main],
    }


def _change_texts(change: Change) -> dict[str, str]:
    return {
        "metric": METRICS.get(change.metric, change.metric.removeprefix("rewards/")),
        "before": _score_text(change.before),
        "after": _score_text(change.after),
        "difference": _difference_text(change.difference),
        "verdict": change.verdict,
    }


def _color(run: RunData, task: str) -> str:
    """Return a kind's own color for the task of its name, and the next of the palette for each other task."""
    others = [name for name in run.tasks if name not in COLORS]
    first = len(COLORS) if len(others) < len(run.tasks) else 0  # the palette begins with the colors of the kinds
    return COLORS.get(task) or PALETTE[(first + others.index(task)) % len(PALETTE)]


def _reward_charts(run: RunData) -> Iterator[str]:
    for task in run.tasks:
        name = f"tasks/{task}/reward"
        color = _color(run, task)
        series = _series(run.records, name, task, color, spread=f"{name}_std")
        yield line_chart(task, [series], bounds=(0.0, 1.0), points=_held_out(run, task, color))


def _part_charts(run: RunData) -> Iterator[str]:
    for name in _names(run.records, lambda name: name.startswith("rewards/") and name.endswith("/mean")):
        part = name.removeprefix("rewards/").removesuffix("/mean")
        spread = name.removesuffix("mean") + "std"
        yield line_chart(part, [_series(run.records, name, part, "var(--c1)", spread=spread)])


def _optimization_charts(run: RunData) -> Iterator[str]:
    for (name, title), color in zip(OPTIMIZATION.items(), itertools.cycle(PALETTE), strict=False):
        yield line_chart(title, [_series(run.records, name, title, color)])


def _comparison(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Return the table and the overlaid reward curves of several runs; None for one."""
    if len(runs) < 2:
        return None
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    rows = []
    for run in runs:
        cells = []
        for task in tasks:
            change = next((c for c in run.changes if c.task == task and c.metric == "reward"), None)
            cells.append(f"{_score_text(change.before)} → {_score_text(change.after)}" if change else "")
        rows.append({"name": run.name, "folder": run.folder.name, "cells": cells})
    charts = []
    for task in tasks:
        pairs = zip(runs, itertools.cycle(PALETTE), strict=False)
        series = [_series(run.records, f"tasks/{task}/reward", run.folder.name, color) for run, color in pairs]
        charts.append(line_chart(task, series, bounds=(0.0, 1.0)))
    return {"tasks": tasks, "rows": rows, "charts": _kept(charts)}


def _series(records: Sequence[Mapping[str, Any]], name: str, title: str, color: str, *, spread: str = "") -> Series:
    kept = [record for record in records if name in record]
    has_spread = any(record.get(spread) is not None for record in kept)
    return Series(
        name=title,
        color=color,
        steps=[int(record["step"]) for record in kept],
        values=[number_or_none(record.get(name)) for record in kept],
        spread=[number_or_none(record.get(spread)) for record in kept] if has_spread else (),
    )


def _held_out(run: RunData, task: str, color: str) -> Iterator[Point]:
    """Yield the held-out scores: before at step 0, those of the run, after at the last step."""
    name = f"eval/{task}/reward"
    places = [(0, run.summary.get("eval_before") or {})]
    places += [(int(record["step"]), record) for record in run.records if name in record]
    if run.records:
        places.append((int(run.records[-1]["step"]), run.summary.get("eval_after") or {}))
    for step, metrics in places:
        score = score_of(metrics, name)
        if score is not None:
            yield Point(step=step, score=score, color=color)


def _time_share(records: Sequence[Mapping[str, Any]]) -> str:
    names = _names(records, lambda name: name.startswith("timing_s/") and name != "timing_s/step")
    totals = [(name, sum(number_or_none(record.get(name)) or 0.0 for record in records)) for name in names]
    totals.sort(key=lambda pair: -pair[1])
    colors = itertools.cycle(PALETTE)
    parts = [(name.removeprefix("timing_s/"), total, next(colors)) for name, total in totals]
    whole = sum(number_or_none(record.get("timing_s/step")) or 0.0 for record in records)
    rest = whole - sum(total for _, total in totals)
    if rest > 0.01 * whole:
        parts.append(("other", rest, "var(--line)"))
    return share_bar(parts)


def _names(records: Sequence[Mapping[str, Any]], is_wanted: Callable[[str], bool]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record if is_wanted(name)))


def _has_picture(sample: Sample) -> bool:
    return any(side is not None and side["image"] for side in (sample.before, sample.after))


def _kept(charts: Iterator[str] | Sequence[str]) -> list[str]:
    return [chart for chart in charts if chart]


def _score_text(score: Estimate | None) -> str:
    return "" if score is None else f"{score.value:.3f}"


def _difference_text(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    interval = difference.interval
    margin = "" if interval is None else f" ± {interval[1] - difference.value:.3f}"
    return f"{difference.value:+.3f}{margin}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
