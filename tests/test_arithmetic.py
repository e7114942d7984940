import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unigrpo.errors import RecipeError
from unigrpo.recipe.load import load_recipe
from unigrpo.sizing.arithmetic import batch_arithmetic, num_rollout_rows, num_rollouts
from unigrpo.sizing.memory import SAMPLER_LOGITS
from unigrpo.sizing.model_size import ModelSize, released_sizes

Write = Callable[[dict[str, Any]], Path]


def test_weights_are_those_of_the_files_and_those_of_a_release_by_its_name(golden: Path) -> None:
    from safetensors import safe_open

    for family in ("llada_tiny", "mmada_tiny"):
        size = ModelSize.from_folder(golden / family)
        with safe_open(golden / family / "model.safetensors", "np") as file:
            count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        assert size is not None
        assert size.num_parameters == count
    released = released_sizes()["mmada-8b"]
    assert released.num_parameters == 32 * (4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096) + 4096 + 2 * 134656 * 4096
    assert released.num_adapter_parameters(16, ["q_proj"]) == 32 * 16 * (4096 + 4096)


def test_step_of_the_small_recipe_by_hand(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(recipe_values))
    assert num_rollouts(recipe) == 3 * 4 * 4
    assert num_rollout_rows(recipe) == 16 * 8 + 16 * 4 + 16 * 4 * 2
    rows = {row.name: row for section in batch_arithmetic(recipe).values() for row in section}
    assert rows["mask draws"].value == "2"
    assert rows["rows without gradient"].value == str((1 + 2) * 48)
    assert rows["rows with gradient"].value == str(2 * 48)
    assert rows["work units"].value == "6"
    assert rows["optimizer updates"].explanation == "6 in the run of 3 steps"
    assert {"weights", "adapter", "gradients, AdamW", "activations", "logits chunk", "total"} <= set(rows)


def test_no_reference_passes_without_kl(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(recipe_values), ["kl.coef=0"])
    rows = {row.name: row for section in batch_arithmetic(recipe).values() for row in section}
    assert rows["rows without gradient"].value == str(1 * 48)


def test_an_estimator_with_two_rows_a_rollout_is_counted_twice(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    (tmp_path / "pairs.py").write_text(
        "class Pairs:\n    rows_per_rollout = 2\n"
        "    def draw(self, batch, step, update, num_updates, mask_token_id): ...\n"
    )
    recipe = load_recipe(write_recipe(recipe_values), ["estimator=pairs.py:Pairs"])
    rows = {row.name: row for section in batch_arithmetic(recipe).values() for row in section}
    assert rows["rows with gradient"].value == str(2 * 2 * 48)


MEMORY = "memory of the learner, estimated"


def test_memory_that_cannot_be_known_is_said_to_be_unknown(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    path = write_recipe(recipe_values)
    (row,) = batch_arithmetic(load_recipe(path, ["policy.path=some-owner/some-model"]))[MEMORY]
    assert (row.value, row.explanation.partition(";")[0]) == (
        "not known",
        "some-owner/some-model is not on this machine",
    )
    (tmp_path / "policy" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"policy\.path: .* has neither model\.safetensors nor"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "millions"), [("GSAI-ML/LLaDA-8B-Instruct", "8,015.6"), ("Gen-Verse/MMaDA-8B-MixCoT", "8,082.7")]
)
def test_released_models_are_estimated_by_name(
    recipe_values: dict[str, Any], write_recipe: Write, name: str, millions: str
) -> None:
    recipe = load_recipe(write_recipe(recipe_values), [f"policy.path={name}", "policy.dtype=bfloat16"])
    weights = batch_arithmetic(recipe)[MEMORY][0]
    assert weights.explanation == f"{millions} M in bfloat16, known by the name {name}"
    assert weights.value == f"{float(millions.replace(',', '')) * 2e6 / 1e9:.2f} GB"


@pytest.mark.parametrize("family", ["llada2", "showo", "lavida"])
def test_weights_of_a_folder_are_those_of_its_files(
    family: str, recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    from safetensors import safe_open

    from unigrpo.testing.tiny.make_tiny import make_tiny

    folder = make_tiny(family, tmp_path / family, layers=2, width=128)
    with safe_open(folder / "model.safetensors", "np") as file:
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    recipe = load_recipe(write_recipe(recipe_values))
    policy = recipe.policy.model_copy(update={"path": str(folder), "dtype": "float32"})
    weights = batch_arithmetic(recipe.model_copy(update={"policy": policy}))[MEMORY][0]
    assert weights.explanation == f"{count / 1e6:,.1f} M in float32"


def test_sampler_and_the_actors_copies_are_named(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    path = write_recipe(recipe_values)
    here = {row.name: row for row in batch_arithmetic(load_recipe(path))[MEMORY]}
    assert here["sampler"].explanation.startswith("up to 16 rows")  # 8 of a unit, twice for guidance
    away = {row.name: row for row in batch_arithmetic(load_recipe(path, ["rollouts.num_actors=3"]))[MEMORY]}
    assert "sampler" not in away
    assert away["each actor, besides"].explanation.startswith("x 3 actors: a copy of the policy")


def test_sampler_s_logits_are_those_of_the_sampler() -> None:
    from unigrpo.rollouts.draw import ELEMENTS_PER_CHUNK

    assert SAMPLER_LOGITS == ELEMENTS_PER_CHUNK
