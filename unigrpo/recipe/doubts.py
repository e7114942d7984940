"""What can run as a recipe says, and is probably not meant: said in a line each, by `check` and where a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unigrpo.data.held_out import held_out_problems
from unigrpo.data.sources import Asked, check_jsonl
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe


def doubts_of_training(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each file of held-out prompts that training asks, too, by the first lines of the files."""
    sides: dict[str, dict[Path, list[Asked]]] = {"jsonl": {}, "eval_jsonl": {}}
    for task in recipe.tasks.values():
        for key, files in sides.items():
            if (path := getattr(task.data, key)) is not None:
                files[Path(path)] = check_jsonl(Path(path), task.kind, task.data.columns)
    if recipe.evaluate.enabled:
        yield from held_out_problems(sides["jsonl"], sides["eval_jsonl"])


def doubts_of_supervision(recipe: SftRecipe) -> Iterator[str]:
    """Yield a line for each file that a supervised stage does not read."""
    for name, task in recipe.tasks.items():
        if task.data.eval_jsonl is not None:
            yield f"tasks.{name}.data.eval_jsonl is not read: a supervised stage evaluates nothing"
