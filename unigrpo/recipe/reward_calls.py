"""What a reward's signature asks for against the columns that its prompts have. Nobody's code runs."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unigrpo.data.jsonl import mapped, read_objects
from unigrpo.data.sources import COLUMN_NAMES
from unigrpo.errors import UserError
from unigrpo.plugin import Located, PluginError, call_of, locate, members_of
from unigrpo.rewards.runtime.columns import SUPPLIED
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.tasks import DataSettings, TaskSettings

OF_EVERY_PROMPT = frozenset(("answer", "images", "task", "kind", "solution"))
"""Columns that every prompt has, be it as None, or none of them in a list."""
ADAPTER = "unigrpo.rewards.adapters:Trl"
"""The reward that is called as the function in its arguments is."""
SECONDS_A_FILE = 0.1


def call_problems(recipe: Recipe) -> Iterator[str]:
    """Yield what would fail each call of a reward: a column that it cannot do without, and that its prompts lack."""
    for name, reward in recipe.rewards.items():
        call = _call(reward)
        if call is None:
            continue
        key = f"rewards.{name}"
        if unnamed := _positional(call):
            yield f"{key}.use: {reward.use} takes {', '.join(unnamed)} by place; a reward is called by names alone"
            continue
        needed = call.required - OF_EVERY_PROMPT - set(SUPPLIED) - _given(reward)
        for task, settings in recipe.tasks.items():
            if needed and (reward.tasks is None or task in reward.tasks):
                yield from _missing(needed, reward.use, key, task, settings)


def unread_columns(recipe: Recipe) -> Iterator[str]:
    """Yield what is not known before the run: columns of prompts that code makes, calls that source does not tell."""
    for name, reward in recipe.rewards.items():
        if _call(reward) is None and reward.env is None:
            yield f"rewards.{name}: which columns {reward.use} needs"
        if reward.env is None and _makes_anything(reward.use):
            yield f"rewards.{name}: what {reward.use} makes in its __new__"
    for task, settings in recipe.tasks.items():
        if settings.data.use is not None:
            yield f"tasks.{task}.data: what the prompts of {settings.data.use} hold"
            if _makes_anything(settings.data.use):
                yield f"tasks.{task}.data: what {settings.data.use} makes in its __new__"


def _makes_anything(use: str) -> bool:
    """Return whether a class makes its objects itself, so that they may be of any other."""
    try:
        return "__new__" in (members_of(locate(use)) or ())
    except PluginError:
        return False  # `checks` says that there is no such code


def _call(reward: RewardSettings) -> Located | None:
    """Return what a reward's calls take; None where source does not tell."""
    use: Any = reward.use
    if use == ADAPTER:
        use = reward.arguments.get("function") if reward.arguments.get("make") is None else None
    try:
        return call_of(locate(use)) if isinstance(use, str) else None
    except PluginError:
        return None  # `checks` says that there is no such code


def _given(reward: RewardSettings) -> set[str]:
    """Return the keywords of every call that the recipe itself gives."""
    more = reward.arguments.get("arguments")
    return set(reward.arguments) | (set(more) if isinstance(more, Mapping) else set())


def _positional(call: Located) -> list[str]:
    statement = call.statement
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    names = [one.arg for one in statement.args.posonlyargs if one.arg != "self"]
    return [name for name in names if name in call.required]


def _missing(needed: frozenset[str] | set[str], use: str, key: str, task: str, settings: TaskSettings) -> Iterator[str]:
    for split in ("jsonl", "eval_jsonl"):
        path = getattr(settings.data, split)
        if path is None or not Path(path).is_file():
            continue
        for column in sorted(absent_columns(Path(path), settings.data, frozenset(needed))):
            yield (
                f"{key}: {use} cannot be called without `{column}`, which is no column of tasks.{task}.data.{split} "
                f"({path}); give the parameter a default, name the reward's tasks, or write the column"
            )


def absent_columns(path: Path, data: DataSettings, needed: frozenset[str]) -> frozenset[str]:
    """Return the columns that no row of a file has under names that go to rewards; a long file is read in part."""
    ours = frozenset(mapped(COLUMN_NAMES, data.columns).values())
    left, deadline = needed, time.monotonic() + SECONDS_A_FILE
    try:
        for _, values in read_objects(path):
            left = left - (values.keys() - ours)
            if not left or time.monotonic() > deadline:
                break
    except (UserError, OSError):
        return frozenset()  # the file's own fault is said where its lines are checked
    return left
