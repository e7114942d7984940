"""A family is one file: a user's that a recipe names, or one that is put into the folder; nothing else changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unigrpo.errors import RecipeError
from unigrpo.models import families, load_policy
from unigrpo.models.base import Abilities
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.metrics import read_metrics
from unigrpo.sizing.arithmetic import batch_arithmetic
from unigrpo.sizing.inspection import inspect_model
from unigrpo.testing.tiny.layouts import layouts
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.train import train

Write = Callable[[dict[str, Any]], Path]
FAMILY = '''
from unigrpo.models.base import Abilities
from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.text_policy import TextPolicy


class Mine(TextPolicy):
    """A Llama body that sees both ways."""

    abilities = Abilities(tasks=("reason",), untrained=("imagine",), why_untrained="it draws nothing")
    model_types = ("mine",)
    architectures = ("MineForMaskedDiffusion",)
    layouts = """
    mine:
      like: dream
      title: Mine
      checkpoints: none
      golden: null
      config: {architectures: [MineForMaskedDiffusion], model_type: mine, hidden_size: 32}
    """

    @classmethod
    def build(cls, config):
        return Decoder(DecoderConfig.from_dict(config))

    def hidden(self, model_input):
        ids, positions = model_input.token_ids, model_input.positions
        return self.module(ids, visible_keys(model_input.is_padding), positions)
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FAMILY)
    return f"{tmp_path / 'mine.py'}:Mine"


def recipe_of(recipe_values: dict[str, Any], folder: Path) -> dict[str, Any]:
    sampling = {"completion_length": 8, "num_denoising_steps": 2, "stop_at_eos": False}
    task = {"data": {"use": "unigrpo.quickstart.sums:Sums"}, "prompts_per_step": 1, "sampling": sampling}
    return recipe_values | {
        "num_steps": 1,
        "policy": {"path": str(folder), "use": "mine.py:Mine", "dtype": "float32"},
        "tasks": {"reason": task},
        "evaluate": {"enabled": False},
        "tracking": {"use": ["jsonl"], "rollouts_every": 0},
    }


def test_a_user_s_family_trains_by_the_path_of_its_file(
    mine: str, recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    folder = make_tiny(mine, tmp_path / "checkpoint")
    recipe = load_recipe(write_recipe(recipe_of(recipe_values, folder)))
    weights = batch_arithmetic(recipe)["memory of the learner, estimated"][0]
    policy = load_policy(folder, dtype="float32", use=mine)
    assert type(policy).__name__ == "Mine"
    count = sum(parameter.numel() for parameter in policy.module.parameters())
    assert weights.explanation == f"{count / 1e6:,.1f} M in float32"
    total = next(row for row in inspect_model(folder, use=mine)["parameters"] if row.name == "total")
    assert total.explanation.startswith(f"{count:,} in ")
    train(recipe, tmp_path / "run")
    (record,) = read_metrics(tmp_path / "run")
    assert record["step"] == 1


def test_a_user_s_family_says_in_source_what_it_does_not_train(
    mine: str, recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    values = recipe_of(recipe_values, folder)
    values["tasks"]["imagine"] = recipe_values["tasks"]["imagine"]
    values["policy"]["image_tokenizer"] = recipe_values["policy"]["image_tokenizer"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(values))
    assert list(caught.value.problems) == ["tasks.imagine: it draws nothing"]
    assert families.abilities(mine) == Abilities(
        tasks=("reason",), untrained=("imagine",), why_untrained="it draws nothing"
    )


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        ("laada", "policy.use: there is no 'laada'; did you mean 'llada'?"),
        ("mine.py:Yours", "defines no 'Yours'"),
        ("other.py:Mine", "there is no file other.py"),
    ],
)
def test_a_family_that_there_is_not_is_named_before_anything_runs(
    mine: str, use: str, problem: str, recipe_values: dict[str, Any], write_recipe: Write
) -> None:
    recipe_values["policy"]["use"] = use
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(recipe_values))
    assert any(problem in line for line in caught.value.problems)


def test_a_file_that_is_put_into_the_folder_is_a_family(tmp_path: Path) -> None:
    root, copy = Path(__file__).parent.parent, tmp_path / "copy"
    for source, package in (("unigrpo", "unigrpo"), ("rewards", "unigrpo/rewards"), ("rollouts", "unigrpo/rollouts")):
        shutil.copytree(root / source, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "unigrpo" / "models" / "policies" / "mine.py").write_text(FAMILY)
    code = (
        "import sys; from pathlib import Path; "
        "sys.meta_path = [finder for finder in sys.meta_path if 'unigrpo' not in repr(finder)]; "
        "from unigrpo.models import load_policy; "
        "from unigrpo.testing.conformance import check_sampler; from unigrpo.testing.tiny.make_tiny import make_tiny; "
        "policy = load_policy(make_tiny('mine', Path(sys.argv[1])), dtype='float32'); check_sampler(policy); "
        "print(type(policy).__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "checkpoint")],
        capture_output=True,
        text=True,
        check=False,
        cwd=copy,
    )
    assert done.stdout.strip() == "unigrpo.models.policies.mine", done.stderr


def test_every_family_has_one_public_class_and_no_two_claim_a_checkpoint() -> None:
    claims = [kind for said in families.known_families().values() for kind in said.get("model_types", ())]
    assert len(claims) == len(set(claims))
    for layout in layouts().values():
        assert families.family_name(json.loads(json.dumps(layout.config))) == layout.family
