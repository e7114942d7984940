"""A recipe, read and checked whole before anything runs. Imports neither torch nor ray.

Paths inside a recipe are taken from the recipe's own folder first, then from the working folder, and are absolute in
the recipe that comes back, so that the copy in a run directory means the same files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from unigrpo.errors import RecipeError
from unigrpo.files import regular_file, usable, write_atomically
from unigrpo.plugin import locate, parse_reference
from unigrpo.recipe.checks import (
    problems_of_evaluation,
    problems_of_scoring,
    problems_of_supervision,
    problems_of_training,
)
from unigrpo.recipe.messages import describe
from unigrpo.recipe.text import apply_overrides, read_mapping
from unigrpo.settings.base import Settings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.sft import SftRecipe

_CODE_IN_A_FILE = re.compile(r"(?P<file>[^\n:]+\.py):(?P<name>[\w.]+)")
AnyRecipe = TypeVar("AnyRecipe", Recipe, SftRecipe)
AnySettings = TypeVar("AnySettings", bound=Settings)


class RewardsSection(Settings):
    """What `unigrpo score` reads of a recipe."""

    rewards: dict[str, RewardSettings]


def load_recipe(path_or_name: str | Path, overrides: list[str] | None = None, *, is_trained: bool = True) -> Recipe:
    """Return a training recipe that can run.

    ``overrides`` are ``key.path=value``, the value as YAML; where it is only evaluated (``is_trained`` false), the
    family need not train its tasks.

    Raises:
        RecipeError: with every problem found: unknown keys, wrong values, sums that do not work out, missing files.
    """
    return _load(path_or_name, overrides or [], Recipe, problems_of_training if is_trained else problems_of_evaluation)


def load_sft_recipe(path_or_name: str | Path, overrides: list[str] | None = None) -> SftRecipe:
    """Return a supervised recipe that can run, as `load_recipe` does."""
    return _load(path_or_name, overrides or [], SftRecipe, problems_of_supervision)


def load_rewards(source: str, overrides: list[str] | None = None) -> dict[str, RewardSettings]:
    """Return the rewards of a recipe, of a YAML file that has at least a ``rewards`` section, or of one name.

    Args:
        source: a YAML file, a packaged recipe's name, ``"module:name"`` or ``"path/to/file.py:name"``; the last two
            are one reward, called by the name after the colon.
        overrides: ``rewards.NAME.key=value``, the value as YAML.

    Raises:
        RecipeError: with every problem found.
        UserError: if such a name does not exist.
    """
    folder = Path.cwd()
    if ":" in source and not Path(source).is_file():
        locate(source)
        values: dict[str, Any] = {"rewards": {parse_reference(source)[1]: {"use": source}}}
    else:
        path = find_recipe(source)
        folder = path.parent
        values = {"rewards": read_mapping(path, source).get("rewards")}
    if not values["rewards"]:
        raise RecipeError(source, ["rewards: none; wanted at least one, such as `length: {use: my_rewards.py:length}`"])
    section = _checked(
        values, overrides or [], RewardsSection, lambda found: problems_of_scoring(found.rewards), source, folder
    )
    return section.rewards


def is_supervised(path: Path) -> bool:
    """Return whether a recipe file is of a supervised stage: it has a rate of its own and no learner.

    Raises:
        RecipeError: if it is no recipe at all.
    """
    values = read_mapping(path, str(path))
    return "lr" in values and "learner" not in values


def dump_recipe(recipe: Recipe | SftRecipe, path: Path) -> None:
    """Write a recipe with every default filled in; loading it gives an equal recipe."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, text)


def packaged_recipes() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    entries = resources.files("unigrpo.recipes").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _load(
    path_or_name: str | Path,
    overrides: list[str],
    model: type[AnyRecipe],
    find_problems: Callable[[AnyRecipe], list[str]],
) -> AnyRecipe:
    source = str(path_or_name)
    path = find_recipe(source)
    values = read_mapping(path, source)
    _refuse_other_kind(values, model, source)
    return _checked(values, overrides, model, find_problems, source, path.parent)


def _checked(
    values: dict[str, Any],
    overrides: list[str],
    model: type[AnySettings],
    find_problems: Callable[[AnySettings], list[str]],
    source: str,
    folder: Path,
) -> AnySettings:
    """Return the settings that values with overrides are, their paths taken from a folder first."""
    values = apply_overrides(values, overrides, model)
    with usable(Path(source)):  # a path of thousands of characters, a folder that may not be looked into
        _anchor_paths(values, folder)
        try:
            settings = model.model_validate(values)
        except ValidationError as error:
            raise RecipeError(source, describe(error, model)) from None
        problems = find_problems(settings)
    if problems:
        raise RecipeError(source, problems)
    return settings


def _refuse_other_kind(values: dict[str, Any], model: type[Recipe] | type[SftRecipe], source: str) -> None:
    """Say which command fits, instead of naming every key of a recipe of the other kind."""
    if model is Recipe and "lr" in values and "learner" not in values:
        raise RecipeError(source, ["this is of a supervised stage (`lr`, no `learner`); `unigrpo sft` runs it"])
    if model is SftRecipe and "learner" in values and "lr" not in values:
        raise RecipeError(source, ["this is of reinforcement learning (it has a `learner`); `unigrpo train` runs it"])


def find_recipe(source: str) -> Path:
    """Return the file of a path or of a packaged recipe's name.

    Raises:
        RecipeError: naming the packaged recipes, if there is neither.
    """
    path = Path(source)
    packaged = resources.files("unigrpo.recipes").joinpath(f"{source.removesuffix('.yaml')}.yaml")
    with usable(path):
        if os.path.lexists(path) and not path.is_dir():
            return regular_file(path)
        if path.name == source and packaged.is_file():
            return Path(str(packaged))
    names = ", ".join(packaged_recipes()) or "none"
    raise RecipeError(source, [f"there is no such file, and no packaged recipe of that name (there are: {names})"])


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of a recipe absolute where a file or folder stands there."""
    _anchor_code(values, folder)
    for section, key in _path_slots(values):
        value = section.get(key)
        if isinstance(value, str) and value and not value.startswith("asset:"):
            found = _anchored(value, folder)
            if found is not None:
                # A link to Python is the environment.
                section[key] = str(found.absolute() if key == "python" else found.resolve())


def _anchored(path: str, folder: Path) -> Path | None:
    return next((candidate for candidate in (folder / path, Path(path)) if candidate.exists()), None)


def _anchor_code(section: Any, folder: Path) -> None:
    """Make the file of every ``path/to/file.py:Name`` absolute, wherever in a recipe it stands."""
    for key, value in section.items() if isinstance(section, dict) else enumerate(section):
        if isinstance(value, dict | list):
            _anchor_code(value, folder)
        elif isinstance(value, str) and (match := _CODE_IN_A_FILE.fullmatch(value)):
            file = _anchored(match["file"], folder)
            if file is not None:
                section[key] = f"{file.resolve()}:{match['name']}"


def _path_slots(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    policy = values.get("policy")
    if isinstance(policy, dict):
        yield from ((policy, key) for key in ("path", "image_tokenizer", "adapter"))
    for task in _sections(values.get("tasks")):
        if isinstance(data := task.get("data"), dict):
            yield from ((data, key) for key in ("jsonl", "eval_jsonl"))
    for section in _sections(values.get("rewards")):
        if isinstance(env := section.get("env"), dict):
            yield env, "python"


def _sections(value: Any) -> list[dict[str, Any]]:
    return [item for item in value.values() if isinstance(item, dict)] if isinstance(value, dict) else []
