"""What can run as a recipe says, and is probably not meant: said in a line each, by `check` and where a run starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from unigrpo.data.held_out import held_out_problems
from unigrpo.data.sources import Asked, check_jsonl
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

_WORKER_GB = 0.03
"""Memory of a reward's process that has loaded nothing: Python and numpy."""


def strains(recipe: Recipe | SftRecipe) -> Iterator[str]:
    """Yield a line for each count of threads or processes that this machine has not the cores or the memory for."""
    cores = os.cpu_count() or 1
    counts = {"num_threads": recipe.num_threads}
    if isinstance(recipe, Recipe) and recipe.rollouts.num_actors:
        counts["rollouts.num_threads"] = recipe.rollouts.num_threads
    for key, count in counts.items():
        if count is not None and count > cores:
            yield f"{key}: {count:,}, and this machine has {cores} cores; more threads than cores wait for each other"
    if not isinstance(recipe, Recipe):
        return
    if (count := recipe.rollouts.num_actors) > cores:
        yield f"rollouts.num_actors: {count:,} ask Ray for a core each, and this machine has {cores}"
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    for name, reward in recipe.rewards.items():
        wanted = reward.num_workers * _WORKER_GB
        if reward.placement == "local" and wanted > room:
            yield (
                f"rewards.{name}.num_workers: {reward.num_workers:,} processes take {wanted:.0f} GB before they load "
                f"anything, and this machine has {room:.0f} GB"
            )


def doubts_of_training(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each file of held-out prompts that training asks, too, by the first lines of the files."""
    yield from strains(recipe)
    sides: dict[str, dict[Path, list[Asked]]] = {"jsonl": {}, "eval_jsonl": {}}
    for task in recipe.tasks.values():
        for key, files in sides.items():
            if (path := getattr(task.data, key)) is not None:
                files[Path(path)] = check_jsonl(Path(path), task.kind, task.data.columns)
    if recipe.evaluate.enabled:
        yield from held_out_problems(sides["jsonl"], sides["eval_jsonl"])


def doubts_of_supervision(recipe: SftRecipe) -> Iterator[str]:
    """Yield a line for each file that a supervised stage does not read."""
    yield from strains(recipe)
    for name, task in recipe.tasks.items():
        if task.data.eval_jsonl is not None:
            yield f"tasks.{name}.data.eval_jsonl is not read: a supervised stage evaluates nothing"
