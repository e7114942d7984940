"""What changed in a run's recipe while it went on: which keys may, from which step each holds, and who edited the file.

``changes.json`` keeps the recipe that the run last went on with, and every change with the number of steps that were
done before it. The stored recipe.yaml is held against it, so that an edit is seen whatever it is. Torch-free.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from unigrpo.errors import UserError
from unigrpo.files import json_text, usable, write_atomically
from unigrpo.recipe.load import dump_recipe
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

RECIPE, HISTORY = "recipe.yaml", "changes.json"
AnyRecipe = TypeVar("AnyRecipe", Recipe, SftRecipe)
logger = logging.getLogger(__name__)

_OF_EITHER = (
    *("num_steps", "num_threads", "description", "policy.device", "policy.gradient_checkpointing"),
    *("checkpoint.*", "tracking.*"),
)
_OF_REWARDS = ("timeout_s", "batch_size", "memory_limit_gb", "num_workers", "num_gpus", "num_cpus")
_OF_TRAINING = ("evaluate.*", "learner.*", "kl.coef", "rollouts.*", *(f"rewards.*.{key}" for key in _OF_REWARDS))
_OF_SUPERVISION = ("lr", "lr_schedule", "warmup_steps", "betas", "weight_decay", "max_grad_norm", "log_every")
MAY_CHANGE: Mapping[type[Recipe | SftRecipe], tuple[str, ...]] = {
    Recipe: (*_OF_EITHER, *_OF_TRAINING, "rewards.*.max_failed_fraction"),
    SftRecipe: (*_OF_EITHER, *_OF_SUPERVISION),
}
"""Keys that `unigrpo resume` may change: what they were to a step is known, and no earlier step is other than it was.
Everything else says what the run is (seed, policy, data, rewards, method), and a change of it is another run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One key's new value."""

    key: str
    before: Any
    since: Any
    step: int
    """Steps that were done with the value before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What `changes.json` holds."""

    recipe: dict[str, Any]
    """That the run last went on with, every default filled in."""
    changes: tuple[Change, ...] = ()


_HISTORY = TypeAdapter(History)


def read_history(run_dir: Path) -> History | None:
    """Return the history of a run; None where an earlier release made the run.

    Raises:
        UserError: if the file is not one.
    """
    path = run_dir / HISTORY
    if not path.is_file():
        return None
    try:
        with usable(path):
            return _HISTORY.validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{path} is no history of a recipe ({place or 'the file'}: {problem['msg'].lower()}); "
            "remove it to go on with recipe.yaml as it is"
        ) from error


def start_history(recipe: Recipe | SftRecipe, run_dir: Path) -> None:
    """Keep the recipe that a run starts with."""
    _write(run_dir, History(recipe=recipe.model_dump(mode="json")))


def changes_between(old: Recipe | SftRecipe, new: Recipe | SftRecipe, *, step: int = 0) -> list[Change]:
    """Return the keys whose values differ."""
    return _differences(old.model_dump(mode="json"), new.model_dump(mode="json"), step)


def edits_of(run_dir: Path, stored: Mapping[str, Any]) -> list[Change]:
    """Return where the values of a stored recipe.yaml differ from those that the run went on with."""
    history = read_history(run_dir)
    return [] if history is None else _differences(history.recipe, stored, 0)


def recorded(run_dir: Path, stored: AnyRecipe) -> AnyRecipe:
    """Return the recipe that a run went on with, which is the stored one unless somebody edited that.

    Raises:
        UserError: if the history is of another kind of run.
    """
    history = read_history(run_dir)
    if history is None:
        return stored
    try:
        return type(stored).model_validate(history.recipe)
    except ValidationError as error:
        raise UserError(
            f"{run_dir / HISTORY} is of another recipe than {run_dir / RECIPE}; put that one back"
        ) from error


def planned_changes(run_dir: Path, stored: AnyRecipe, wanted: AnyRecipe, num_done: int) -> list[Change]:
    """Return what a resumed run changes: what was edited in its recipe.yaml, which is said, and what is asked for now.

    Args:
        run_dir: of the run.
        stored: the recipe in it.
        wanted: the same with the overrides.
        num_done: steps of its newest checkpoint.

    Raises:
        UserError: naming each change that would make the steps done other than the recipe says.
    """
    base = recorded(run_dir, stored)
    if edits := changes_between(base, stored):
        logger.warning("%s was edited: %s; an edit counts as a change from here on", run_dir / RECIPE, _listed(edits))
    changes = changes_between(base, wanted, step=num_done)
    known = MAY_CHANGE[type(stored)]
    if refused := [one for one in changes if not any(fnmatchcase(one.key, pattern) for pattern in known)]:
        edited = {one.key for one in edits}
        way_out = f"put {RECIPE} back" if any(one.key in edited for one in refused) else "leave that out"
        raise UserError(
            f"{run_dir}: {_listed(refused)} cannot change in a run that goes on, because its steps so far would not be "
            f"what the recipe says; {way_out}, or start a new run of it (a folder that moved: a link at the old place "
            f"will do). These may change: {', '.join(known)}"
        )
    if wanted.num_steps < num_done:
        raise UserError(f"num_steps={wanted.num_steps}: {run_dir} has done {num_done} steps; give {num_done} or more")
    return changes


def record_changes(run_dir: Path, recipe: Recipe | SftRecipe, changes: Sequence[Change], step: int) -> None:
    """Write that a run goes on with a recipe after so many steps.

    A run that goes on from an earlier step than a change was made at has that change from there.
    """
    history = read_history(run_dir)
    if history is None:
        history = History(recipe={})
    made = _joined([*history.changes, *changes], step)
    if changes:
        dump_recipe(recipe, run_dir / RECIPE)  # First: an edit without its record is found, the other way round not.
    following = History(recipe=recipe.model_dump(mode="json"), changes=tuple(made))
    if following != history:
        _write(run_dir, following)


def changes_made(run_dir: Path) -> dict[str, Any]:
    """Return ``changes`` of a summary, in order; nothing where there were none."""
    history = read_history(run_dir)
    return {"changes": [asdict(one) for one in history.changes]} if history is not None and history.changes else {}


def described(changes: Iterable[Change]) -> dict[str, str]:
    """Return by key what its values were and since when: ``0.001 to step 40, 0.0001 since``."""
    texts: dict[str, list[str]] = {}
    last: dict[str, Any] = {}
    for one in changes:
        texts.setdefault(one.key, []).append(f"{_shown(one.before)} to step {one.step}")
        last[one.key] = one.since
    return {key: f"{', '.join(parts)}, {_shown(last[key])} since" for key, parts in texts.items()}


def _joined(changes: Sequence[Change], step: int) -> list[Change]:
    """Return the changes with none after a step, and one for each key and step."""
    made: dict[tuple[str, int], Change] = {}
    for one in changes:
        place = (one.key, min(one.step, step))
        before = made[place].before if place in made else one.before
        made[place] = Change(key=one.key, before=before, since=one.since, step=place[1])
    return [one for one in made.values() if one.before != one.since]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> list[Change]:
    before, since = dict(_flat(old)), dict(_flat(new))
    return [
        Change(key=key, before=before.get(key), since=since.get(key), step=step)
        for key in dict.fromkeys([*before, *since])
        if before.get(key) != since.get(key)
    ]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value != {}:
            yield f"{prefix}{name}", value


def _listed(changes: Sequence[Change]) -> str:
    return ", ".join(f"{one.key} ({_shown(one.before)} → {_shown(one.since)})" for one in changes)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value, ensure_ascii=False)


def _write(run_dir: Path, history: History) -> None:
    write_atomically(run_dir / HISTORY, json_text(asdict(history), indent=1, ensure_ascii=False) + "\n")
