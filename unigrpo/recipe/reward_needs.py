"""What a class of a reward needs of the data, against the columns that its prompts have. Nobody's code runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unigrpo.data.jsonl import mapped, read_objects
from unigrpo.data.sources import COLUMN_NAMES
from unigrpo.errors import UserError
from unigrpo.plugin import PluginError, facts
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.tasks import DataSettings

SECONDS_A_FILE = 0.1
ENOUGH_LINES = 200
"""Of a file that takes longer than that: what none of these has is taken for absent."""


def needs_problems(recipe: Recipe) -> Iterator[str]:
    """Yield which rewards would apply to nothing, because none of their tasks' files has the columns that they need.

    A class says so in ``needed_columns``: groups of names, of which one group must be there.
    """
    for name, reward in recipe.rewards.items():
        groups = _needed(reward.use)
        tasks = {task: one.data for task, one in recipe.tasks.items() if reward.tasks is None or task in reward.tasks}
        if not groups or any(data.use is not None for data in tasks.values()):
            continue
        for split in ("jsonl", "eval_jsonl"):
            paths = {task: getattr(data, split) for task, data in tasks.items() if getattr(data, split) is not None}
            found = {task: _present(Path(path), tasks[task]) for task, path in paths.items()}
            if (
                None in found.values()
                or not found
                or any(set(one) <= (has or set()) for has in found.values() for one in groups)
            ):
                continue
            wanted = ", or ".join(" and ".join(one) for one in groups)
            given = "; ".join(
                f"{paths[task]} has {', '.join(sorted(has or ())) or 'none'}" for task, has in found.items()
            )
            yield (
                f"rewards.{name}: {reward.use} needs {wanted}, and no line of its tasks' {split} has that ({given}); "
                "name the columns so, map answer in data.columns, or name the reward's tasks"
            )


def _needed(use: str) -> tuple[tuple[str, ...], ...]:
    if ":" not in use:
        return ()
    try:
        said: Any = facts(use, "").get("needed_columns")
    except PluginError:
        return ()  # `checks` says that there is no such code
    return tuple(said) if isinstance(said, tuple) else ()


def _present(path: Path, data: DataSettings) -> set[str] | None:
    """Return the names under which the lines of a file have something for rewards; None where it cannot be read."""
    ours = mapped(COLUMN_NAMES, data.columns)
    names = {column: name for name, column in ours.items()}
    found: set[str] = set()
    deadline = time.monotonic() + SECONDS_A_FILE
    try:
        for number, values in read_objects(path):
            found |= {names.get(column, column) for column, value in values.items() if value is not None}
            if number >= ENOUGH_LINES and time.monotonic() > deadline:
                break
    except (UserError, OSError):
        return None  # the file's own fault is said where its lines are checked
    return found - {"prompt", "id", "image", "completion"}
