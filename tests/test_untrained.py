"""What a family only generates is refused by training and checking, with its reason, and may be evaluated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unigrpo.errors import RecipeError, UserError
from unigrpo.models import load_policy
from unigrpo.models.base import Abilities
from unigrpo.models.families import FOLDER, abilities, known_families
from unigrpo.models.opening import refuse_untrained
from unigrpo.plugin import choice
from unigrpo.recipe.load import load_recipe

GOLDEN = Path(__file__).parent / "golden"
Write = Callable[[dict[str, Any]], Path]


def give_policy(recipe_values: dict[str, Any], folder: Path, family: str) -> None:
    shutil.copyfile(GOLDEN / family / "config.json", folder / "policy" / "config.json")
    for task in recipe_values["tasks"].values():
        task["sampling"].pop("guidance_scale", None)


def test_every_task_of_a_generation_only_family_is_refused_with_its_reason(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    give_policy(recipe_values, tmp_path, "diffusion_gemma_tiny")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(recipe_values))
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "tasks.reason",
        "tasks.understand",
        "tasks.imagine",
    ]
    assert all("noised with random ids" in problem for problem in caught.value.problems)
    assert len(load_recipe(write_recipe(recipe_values), is_trained=False).tasks) == 3


def test_only_the_text_of_show_o_is_refused(recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    give_policy(recipe_values, tmp_path, "showo_tiny")
    with pytest.raises(RecipeError, match="from what stands before it") as caught:
        load_recipe(write_recipe(recipe_values))
    assert len(caught.value.problems) == 2
    recipe_values["tasks"] = {"imagine": recipe_values["tasks"]["imagine"]}
    assert set(load_recipe(write_recipe(recipe_values)).tasks) == {"imagine"}


def test_a_loaded_policy_is_refused_where_its_config_was_not_seen_before() -> None:
    policy = load_policy(GOLDEN / "showo_tiny", dtype="float32")
    refuse_untrained(policy, ["imagine"])
    with pytest.raises(UserError, match="does not train the task understand"):
        refuse_untrained(policy, ["imagine", "understand"])


def test_a_family_says_in_source_what_its_class_says_in_memory() -> None:
    for name in known_families():
        assert abilities(name) == choice(name, FOLDER).abilities, name
    assert abilities("diffusion_gemma").trained == ()
    assert abilities("showo").trained == ("imagine",)
    assert abilities("llada") == Abilities(tasks=("reason",))
