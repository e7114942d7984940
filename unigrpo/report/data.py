"""What a report reads of a run directory. A missing or half-written part is left out, never a failure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.data.jsonl import as_text, read_objects
from unigrpo.errors import UserError
from unigrpo.files import regular_file
from unigrpo.pictures import as_url, open_picture
from unigrpo.recipe.text import read_mapping
from unigrpo.runs.changes import described, edits_of, read_history
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.nan_statistics import number_or_none
from unigrpo.runs.records import Environment, FilmRecord, R, SampleRecord, Summary, read_record, record_of

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 4_000_000
Z_95 = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A held-out mean and its standard error."""

    value: float
    error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval; None where the error is not known."""
        if self.error is None:
            return None
        return self.value - Z_95 * self.error, self.value + Z_95 * self.error


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One held-out metric of one task, before and after."""

    task: str
    metric: str
    before: Estimate | None
    after: Estimate | None
    num_prompts: int | None

    @property
    def difference(self) -> Estimate | None:
        """Return after minus before; its error takes the two as independent, which is cautious."""
        if self.before is None or self.after is None:
            return None
        errors = (self.before.error, self.after.error)
        error = None if None in errors else sum((e or 0.0) ** 2 for e in errors) ** 0.5
        return Estimate(value=self.after.value - self.before.value, error=error)

    @property
    def verdict(self) -> str:
        """Return better, worse, or unclear: the 95 % interval of the difference holds 0, or is not known."""
        difference = self.difference
        if difference is None or difference.interval is None:
            return "unclear"
        low, high = difference.interval
        return "better" if low > 0 else "worse" if high < 0 else "unclear"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A held-out prompt with its completion before and after training."""

    task: str
    prompt: str
    answer: str | None
    prompt_image: str | None
    """A data URL."""
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """A picture's denoising, a frame a step."""

    prompt: str
    frames: tuple[tuple[str, str], ...]
    """(data URL, caption)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """All that a report shows of one run."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    changes: tuple[Change, ...]
    samples: tuple[Sample, ...]
    film: Film | None
    recipe_changes: Mapping[str, str]
    """What changed in the recipe while the run went on, by key, and an edit with which nothing was trained."""

    @property
    def tasks(self) -> list[str]:
        """Return the tasks of the run in the recipe's order; those that it does not hold follow by name."""
        named = {name.split("/")[1] for record in self.records for name in record if name.startswith("tasks/")}
        named |= {change.task for change in self.changes} | {sample.task for sample in self.samples}
        written = [task for task in self.recipe.get("tasks") or () if task in named]
        return [*written, *sorted(named.difference(written))]


def read_run(folder: Path) -> RunData:
    """Return what there is of a run.

    Raises:
        UserError: if the folder is no run directory, or metrics.jsonl is damaged in its middle.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run directory {folder}")
    recipe_path = folder / "recipe.yaml"
    recipe = read_mapping(recipe_path, str(recipe_path)) if recipe_path.is_file() else {}
    recipe_text = recipe_path.read_text(encoding="utf-8") if recipe else ""
    summary = _read(Summary, folder / "summary.json").model_dump()
    _, _, evaluate = (_section(recipe, key, recipe_path) for key in ("tasks", "policy", "evaluate"))
    accuracy = _section(evaluate, "accuracy", recipe_path)
    return RunData(
        name=str(recipe.get("name") or folder.name),
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_text,
        environment=_read(Environment, folder / "environment.json").model_dump(),
        summary=summary,
        records=tuple(read_metrics(folder)),
        changes=tuple(_changes(summary)),
        samples=tuple(_samples(folder, accuracy)),
        film=_film(folder / "film"),
        recipe_changes=_recipe_changes(folder, recipe),
    )


def _section(values: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: {key} is no mapping; put the recipe of the run back")
    return found


def _recipe_changes(folder: Path, recipe: Mapping[str, Any]) -> dict[str, str]:
    history = read_history(folder)
    texts = described(history.changes) if history is not None else {}
    if edits := edits_of(folder, recipe):
        texts["recipe.yaml"] = "edited, and nothing trained with it yet: " + ", ".join(one.key for one in edits)
    return texts


def picture_url(folder: Path, name: object) -> str | None:
    """Return a picture of a folder as a data URL; None if the name leads out of it or to no small picture."""
    if not isinstance(name, str):
        return None
    try:
        path = regular_file(folder / name)
        if path.resolve().parent != folder.resolve() or path.stat().st_size > MAX_PICTURE_BYTES:
            return None
        return as_url(open_picture(path))
    except UserError:
        return None


def _read(kind: type[R], path: Path) -> R:
    """Return a record of the run; one of defaults where there is no file, or, with a warning, none that is right."""
    try:
        return read_record(kind, path) if path.exists() else kind()
    except UserError as error:
        logger.warning("%s; left out of the report", error)
        return kind()


def _read_samples(path: Path) -> list[dict[str, Any]]:
    samples = []
    try:
        for number, values in read_objects(path, may_end_torn=True) if path.is_file() else ():
            samples.append(record_of(SampleRecord, values, f"{path}:{number}").model_dump())
    except UserError as error:
        logger.warning("%s; the samples from there on are left out of the report", error)
    return samples


def _changes(summary: Mapping[str, Any]) -> list[Change]:
    before, after = summary["eval_before"], summary["eval_after"]
    names = [name for name in {**before, **after} if name.startswith("eval/") and name.count("/") >= 2]
    changes = []
    for name in names:
        _, task, metric = name.split("/", 2)
        if metric.endswith("_se") or metric == "n":
            continue
        count = after.get(f"eval/{task}/n", before.get(f"eval/{task}/n"))
        num_prompts = int(count) if isinstance(count, int | float) else None
        scores = {"before": score_of(before, name), "after": score_of(after, name)}
        changes.append(Change(task=task, metric=metric, num_prompts=num_prompts, **scores))
    metrics = {"reward": 0, "optimized": 1, "accuracy": 2}
    kept = [change for change in changes if change.metric != "misordered_fraction" or _is_misordered(change)]
    return sorted(kept, key=lambda change: metrics.get(change.metric, 9))


def _is_misordered(change: Change) -> bool:
    """Return whether any completion is ordered otherwise by the mapped reward than by the sum that is optimised."""
    return any(score is not None and score.value > 0 for score in (change.before, change.after))


def score_of(metrics: Mapping[str, Any], name: str) -> Estimate | None:
    """Return a mean with its error; None where there is none."""
    value = number_or_none(metrics.get(name))
    return None if value is None else Estimate(value=value, error=number_or_none(metrics.get(f"{name}_se")))


def _samples(folder: Path, accuracy: Mapping[str, str]) -> list[Sample]:
    """Pair the samples before and after by task and prompt; a sample without a partner stands alone."""
    sides = {name: _read_samples(folder / f"eval_{name}" / "samples.jsonl") for name in ("before", "after")}
    paired: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for side, records in sides.items():
        for record in records:
            key = (str(record.get("task")), str(record.get("id", record.get("prompt"))))
            paired.setdefault(key, {}).setdefault(side, record)
    samples = []
    for (task, _), both in paired.items():
        either = both.get("after") or both["before"]
        side = "after" if "after" in both else "before"
        samples.append(
            Sample(
                task=task,
                prompt=str(either.get("prompt", "")),
                answer=None if either.get("answer") is None else as_text(either["answer"]),
                prompt_image=picture_url(folder / f"eval_{side}", either.get("prompt_image")),
                before=_side(folder / "eval_before", both.get("before"), accuracy.get(task)),
                after=_side(folder / "eval_after", both.get("after"), accuracy.get(task)),
            )
        )
    return samples


def _side(folder: Path, record: Mapping[str, Any] | None, accuracy_reward: str | None) -> Mapping[str, Any] | None:
    if record is None:
        return None
    passed = (record.get("passed") or {}).get(accuracy_reward)
    return {
        "completion": record.get("completion"),
        "image": picture_url(folder, record.get("image")),
        "reward": record.get("reward"),
        "optimized": record.get("optimized"),
        "is_right": passed if isinstance(passed, bool) else None,
    }


def _film(folder: Path) -> Film | None:
    film = _read(FilmRecord, folder / "film.json")
    frames = []
    for place, name in enumerate(film.frames):
        url = picture_url(folder, name)
        if url is not None:
            frames.append((url, film.texts[place] if place < len(film.texts) else f"step {place + 1}"))
    return Film(prompt=film.prompt, frames=tuple(frames)) if frames else None
