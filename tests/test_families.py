"""Every family on a random checkpoint of its own layout: it keeps the contracts, and it trains."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from unigrpo.errors import RecipeError
from unigrpo.models import load_policy
from unigrpo.models.families import abilities
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.metrics import read_metrics
from unigrpo.testing.conformance import check_policy, check_sampler
from unigrpo.testing.tiny.layouts import layouts
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.train import train

UNTRAINED = [short for short, entry in layouts().items() if "reason" in abilities(entry.family).untrained]
TRAINED = [family for family in layouts() if family != "diffusion_gemma"]
WITH_AN_ACTOR = ("sdar", "lavida")
"""One that keeps finished blocks, and one that reads pictures; `test_rollout_pool` has the others' way."""
REWARD = """
def early_letters(*, prompts, completions):
    return [sum(character in "abcdefghijklm" for character in text) for text in completions]
"""
RECIPE: dict[str, Any] = {
    "num_steps": 3,
    "group_size": 4,
    "num_threads": 1,
    "policy": {"path": ".", "dtype": "float32"},
    "lora": {"r": 2, "alpha": 4},
    "tasks": {
        "reason": {
            "data": {"use": "unigrpo.quickstart.sums:Sums"},
            "prompts_per_step": 2,
            "sampling": {"completion_length": 8, "num_denoising_steps": 4, "block_length": 4, "stop_at_eos": False},
        }
    },
    "rewards": {"letters": {"use": "rewards.py:early_letters"}},
    "learner": {"lr": 0.01, "lr_schedule": "constant", "num_inner_updates": 2},
    "evaluate": {"enabled": False},
    "checkpoint": {"every": 3},
    "tracking": {"use": ["jsonl"], "rollouts_every": 0},
}


Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def make(family: str) -> Path:
        return make_tiny(family, folder / family)

    return make


@pytest.mark.parametrize("family", layouts())
def test_policy_keeps_its_contract(checkpoint: Make, family: str) -> None:
    check_policy(checkpoint(family))


@pytest.mark.parametrize("family", layouts())
def test_sampling_keeps_its_contract(checkpoint: Make, family: str) -> None:
    check_sampler(load_policy(checkpoint(family), dtype="float32"))


PICTURES: dict[str, Any] = {
    "policy": RECIPE["policy"] | {"image_tokenizer": "asset:tiny_magvit", "image_size": 64},
    "tasks": {
        "imagine": {
            "data": {"use": "unigrpo.quickstart.scenes:ImagineScenes"},
            "prompts_per_step": 2,
            "sampling": {"completion_length": 16, "num_denoising_steps": 4, "schedule": "cosine"},
        }
    },
    "rewards": {"size": {"use": "unigrpo.rewards.jpeg_size:JpegSize"}},
}
"""What the families learn whose text does not train."""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("family", TRAINED)
def test_three_steps_through_the_trainer_move_the_adapter(checkpoint: Make, family: str) -> None:
    folder, actors = checkpoint(family), {"rollouts": {"num_actors": int(family in WITH_AN_ACTOR)}}
    (folder / "rewards.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(RECIPE | {"name": family} | actors | (PICTURES if family == "showo" else {}))
    )
    run_dir = folder / "run"
    summary = train(load_recipe(folder / "recipe.yaml"), run_dir)
    assert (summary["status"], summary["num_steps"]) == ("finished", 3)
    records = read_metrics(run_dir)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(math.isfinite(record["grad_norm"]) and record["grad_norm"] > 0 for record in records)
    (adapter,) = (run_dir / "checkpoints").rglob("adapter_model.safetensors")
    moved = {name for name, tensor in load_file(adapter).items() if ".lora_B." in name and bool(tensor.any())}
    targets = load_policy(folder, dtype="float32").lora_targets
    assert moved == {f"base_model.model.{name}.lora_B.weight" for name in targets}


@pytest.mark.parametrize("family", UNTRAINED)
def test_a_task_that_does_not_train_is_refused_with_the_reason(checkpoint: Make, family: str) -> None:
    folder = checkpoint(family)
    (folder / "rewards.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"name": family}))
    reason = abilities(layouts()[family].family).why_untrained
    with pytest.raises(RecipeError, match=re.escape(reason)):
        load_recipe(folder / "recipe.yaml")
