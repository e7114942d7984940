"""The directory of a run, of either stage: made once, kept to one process, and told what it runs on."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unigrpo.errors import UserError
from unigrpo.files import usable, write_atomically
from unigrpo.recipe.load import dump_recipe, load_recipe
from unigrpo.runs.checkpoint import FOLDER
from unigrpo.runs.metrics import read_metrics
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

RECIPE, ENVIRONMENT, SUMMARY, LOCK = "recipe.yaml", "environment.json", "summary.json", ".lock"
PACKAGES = ("torch", "transformers", "peft", "ray", "numpy", "safetensors", "open_clip_torch", "math-verify", "unigrpo")


def create_run_dir(recipe: Recipe | SftRecipe, run_dir: Path) -> None:
    """Make a run directory with the resolved recipe and what it runs on.

    Raises:
        UserError: if it is a file, or exists and is not empty: runs never share a directory.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; name a new folder for this run")
    if run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"{run_dir} is not empty; choose another --out, or go on with it: unigrpo resume {run_dir}")
    with usable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / ENVIRONMENT, json.dumps(environment(), indent=1))
    dump_recipe(recipe, run_dir / RECIPE)


def clear_without_result(run_dir: Path) -> None:
    """Empty a run directory without an evaluation or a step, so that the same command can be tried again."""
    has_result = any(run_dir.glob("eval_*/metrics.json")) or any(run_dir.glob(f"{FOLDER}/step_*"))
    if has_result or read_metrics(run_dir) or (run_dir / SUMMARY).exists():
        return
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep a run directory to this process; the lock goes with the process, also by SIGKILL.

    Raises:
        UserError: if another process works in it.
    """
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"process {file.read().strip() or 'unknown'} works in {run_dir}; wait until it ends, or stop it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
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
    """Return the recipe of an existing run.

    Raises:
        UserError: if the folder holds no run.
    """
    if not (run_dir / RECIPE).is_file():
        raise UserError(f"{run_dir} has no {RECIPE}, so it is no run directory; start one with unigrpo train")
    return load_recipe(run_dir / RECIPE)
