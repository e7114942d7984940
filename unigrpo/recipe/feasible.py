"""What no machine does, by arithmetic, and what this machine's files do not allow: said before anything runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unigrpo.models.files.headers import read_shapes, weight_files
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.rewards import RewardSettings

TOKENS_A_SECOND = {"cpu": 1e8, "cuda": 1e10}
"""Tokens through a model in a second, more than any machine and model here reaches, of one process."""
YEARS = 10
_SECONDS_A_YEAR = 3.15e7
MAX_TOKENS_A_STEP = 10_000_000_000
"""Open tokens of the rollouts of a step: their ids alone are 80 GB."""
_SQLITE = b"SQLite format 3\x00"


def endless_problems(recipe: Recipe) -> Iterator[str]:
    """Yield what cannot be generated in years, or not be held at one time."""
    rollouts = {name: recipe.group_size * task.prompts_per_step for name, task in recipe.tasks.items()}
    tokens = sum(count * recipe.tasks[name].sampling.completion_length for name, count in rollouts.items())
    passed = sum(
        count * recipe.tasks[name].sampling.completion_length * recipe.tasks[name].sampling.num_denoising_steps
        for name, count in rollouts.items()
    )
    device = "cuda" if recipe.policy.device.startswith("cuda") else "cpu"
    rate = TOKENS_A_SECOND[device] * max(1, recipe.rollouts.num_actors)
    years = passed * recipe.num_steps / rate / _SECONDS_A_YEAR
    if tokens > MAX_TOKENS_A_STEP:
        yield (
            f"group_size: a step would hold {sum(rollouts.values()):,} rollouts of {tokens:,} tokens together; wanted "
            "a smaller group_size, prompts_per_step or completion_length"
        )
    elif years > YEARS:
        yield (
            f"num_steps: {recipe.num_steps:,} steps send {passed * recipe.num_steps:.1e} tokens through the policy, "
            f"{years:,.0f} years at {rate:.0e} tokens a second; wanted fewer steps, rollouts, tokens or denoising steps"
        )


def weight_problems(policy: PolicySettings, lora: LoraSettings) -> Iterator[str]:
    """Yield what the headers of the weights tell: none, pickled ones, a file that is cut off, a needless rank."""
    folder = Path(policy.path)
    if not (folder / "config.json").is_file():
        return
    try:
        shapes = read_shapes(weight_files(folder))
    except (ValueError, OSError) as error:
        yield f"policy.path: {error}"
        return
    highest = max((min(shape) for shape in shapes.values() if len(shape) == 2), default=lora.r)
    if lora.enabled and lora.r > highest:
        yield f"lora.r: {lora.r} is more than {highest}, the full rank of this model's layers; wanted less"


def file_problems(rewards: Mapping[str, RewardSettings]) -> Iterator[str]:
    """Yield which files of rewards cannot be used: interpreters that are not there, caches that are none."""
    for name, reward in rewards.items():
        if reward.env is not None and reward.env.python is not None:
            yield from _interpreter(reward.env.python, f"rewards.{name}.env.python")
        if reward.env is not None and reward.env.python_version is not None:
            wanted = f"python{reward.env.python_version}"
            is_ours = reward.env.python_version == ".".join(map(str, sys.version_info[:2]))
            if not is_ours and shutil.which(wanted) is None:
                yield f"rewards.{name}.env.python_version: there is no {wanted} on the PATH; install it"
        if reward.cache_file is not None:
            yield from _cache(Path(reward.cache_file).expanduser(), f"rewards.{name}.cache_file")


def _interpreter(given: str, key: str) -> Iterator[str]:
    path = Path(given).expanduser()
    if not path.is_file():
        yield f"{key}: there is no file {given}; wanted an interpreter of Python, such as path/to/env/bin/python"
    elif not os.access(path, os.X_OK):
        yield f"{key}: {given} may not be run; wanted an interpreter of Python, such as path/to/env/bin/python"


def _cache(path: Path, key: str) -> Iterator[str]:
    way_out = "wanted a SQLite file that can be written, or a new name in a folder that can"
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        yield f"{key}: {path} is a folder; {way_out}"
    elif path.exists() and not path.is_file():
        yield f"{key}: {path} is no file; {way_out}"
    elif not folder.is_dir():
        yield f"{key}: {folder} is a file, so that {path} cannot be below it; {way_out}"
    elif not os.access(path if path.exists() else folder, os.W_OK) or not os.access(folder, os.W_OK):
        yield f"{key}: {path} cannot be written; {way_out}"
    elif path.exists() and path.stat().st_size and (wrong := _no_cache(path)):
        yield f"{key}: {path} {wrong}; {way_out}"


def _no_cache(path: Path) -> str | None:
    """Return why a file is no cache of rewards; None where it is one, or an empty database, or somebody writes it."""
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) != _SQLITE:
            return "is no SQLite file"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as connection:
            columns = [row[1] for row in connection.execute("PRAGMA table_info(rewards)")]
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as error:
        return f"is a damaged SQLite file ({error})"
    return None if columns in ([], ["key", "value"]) else f"is a database of others: its `rewards` has {columns}"


def machine_notes(policy: PolicySettings) -> Iterator[str]:
    """Yield what this machine, as far as can be seen without torch, lacks of what the recipe asks for."""
    device = policy.device
    if not device.startswith("cuda"):
        return
    try:
        build = version("torch")
    except PackageNotFoundError:
        build = ""
    if build.endswith("+cpu"):
        yield f"policy.device: {device}, and the torch that is installed, {build}, is built without CUDA"
    elif not any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")):
        yield f"policy.device: {device}, and this machine shows no GPU"
    elif (index := int(device.partition(":")[2] or 0)) and not Path(f"/dev/nvidia{index}").exists():
        yield f"policy.device: {device}, and this machine shows no GPU of that number"
