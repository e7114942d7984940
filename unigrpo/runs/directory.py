"""The directory of a run, of either stage: made once, kept to one process, and told what it runs on."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unigrpo.errors import UserError
from unigrpo.files import sweep, usable, write_atomically, writing
from unigrpo.recipe.load import dump_recipe, load_recipe
from unigrpo.runs.changes import RECIPE, changes_between, recorded, start_history
from unigrpo.runs.checkpoint import FOLDER, WRITING
from unigrpo.runs.identity import record_identity
from unigrpo.runs.lock import locked, refuse_used
from unigrpo.runs.metrics import read_metrics
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

ENVIRONMENT, SUMMARY = "environment.json", "summary.json"
logger = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "peft", "ray", "numpy", "safetensors", "open_clip_torch", "math-verify", "unigrpo")


def create_run_dir(recipe: Recipe | SftRecipe, run_dir: Path) -> None:
    """Make a run directory with the resolved recipe and what it runs on.

    Raises:
        UserError: if it is a file, or exists and is not empty: runs never share a directory.
    """
    refuse_used(run_dir)
    with usable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / ENVIRONMENT, json.dumps(environment(), indent=1))
    dump_recipe(recipe, run_dir / RECIPE)
    start_history(recipe, run_dir)


def clear_without_result(run_dir: Path) -> None:
    """Empty a run directory without an evaluation or a step, so that the same command can be tried again."""
    has_result = any(run_dir.glob("eval_*/metrics.json")) or any(run_dir.glob(f"{FOLDER}/step_*"))
    if has_result or read_metrics(run_dir) or (run_dir / SUMMARY).exists():
        return
    with suppress(OSError):  # A disk that takes nothing ended the run, and that is what is said.
        for path in run_dir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def new_run(recipe: Recipe | SftRecipe, run_dir: Path, *, has_lock: bool = True) -> Iterator[None]:
    """Make a run directory that is kept to this process; a block that ends without a result leaves it empty.

    Raises:
        UserError: if it is in use: runs never share a directory.
    """
    refuse_used(run_dir)
    with usable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir, has_lock=has_lock):
        try:
            create_run_dir(recipe, run_dir)
            record_identity(recipe, run_dir)
            yield
        finally:
            clear_without_result(run_dir)


@contextmanager
def old_run(run_dir: Path, *, has_lock: bool = True) -> Iterator[None]:
    """Keep an existing run directory to this process, without what killed processes left half-written in it.

    Raises:
        UserError: if another process works in it.
    """
    with locked(run_dir, has_lock=has_lock):
        with writing(run_dir):
            sweep(run_dir)
            for leftover in (run_dir / FOLDER).glob(f"{WRITING}*"):
                shutil.rmtree(leftover)
        yield


def environment() -> dict[str, Any]:
    """Return what a run runs on: Python, platform, cores, GPUs and the versions that matter."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
    }


def read_run(run_dir: Path) -> Recipe:
    """Return the recipe that a run went on with; an edit of recipe.yaml, with which nothing was trained, is said.

    Raises:
        UserError: if the folder holds no run.
    """
    stored = read_recipe(run_dir)
    found = recorded(run_dir, stored)
    if edits := changes_between(found, stored):
        keys = ", ".join(one.key for one in edits)
        logger.warning("%s was edited (%s); what follows is of the run as it was trained", run_dir / RECIPE, keys)
    return found


def read_recipe(run_dir: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that stands in an existing run, with overrides.

    Raises:
        UserError: if the folder holds no run.
    """
    if not (run_dir / RECIPE).is_file():
        raise UserError(f"{run_dir} has no {RECIPE}, so it is no run directory; start one with unigrpo train")
    return load_recipe(run_dir / RECIPE, list(overrides))
