"""How large a model is follows from its config.json alone: the numbers of the module that is built from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from unigrpo.models import load_policy
from unigrpo.models.families import FAMILIES, MASKED_LM_FAMILY
from unigrpo.models.loading import stored_shapes
from unigrpo.models.policies.showo import PHI_1_5 as PHI_OF_SHOWO
from unigrpo.sizing.inspection import inspect_model
from unigrpo.sizing.model_size import COUNTS, PHI_1_5, ModelSize
from unigrpo.testing.tiny.families import TINY_FAMILIES
from unigrpo.testing.tiny.make_tiny import json_files, make_tiny

BILLIONS = {
    ("llada", "8b"): 8.016,
    ("mmada", "8b"): 8.083,
    ("dream", "7b"): 7.616,
    ("sdar", "8b"): 8.191,
    ("sdar_moe", "30b-a3b"): 30.53,
    ("llada_v", "8b"): 8.435,
    ("lavida", "8b"): 8.435,
    ("llada_moe", "7b-a1b"): 7.356,
    ("llada2", "mini"): 16.26,
    ("llada2", "flash"): 102.9,
    ("diffusion_gemma", "26b-a4b"): 51.647701024 / 2,
    ("showo", "256"): 1.448,
    ("showo", "512"): 1.448,
    ("bert", "base"): 0.1095,
    ("bert", "large"): 0.3352,
    ("modernbert", "base"): 0.1497,
    ("modernbert", "large"): 0.3959,
}
"""Weights of the released sizes, to guard these against a slip; DiffusionGemma's are the bytes of its published files,
which are bfloat16."""


def test_every_release_has_a_listed_count() -> None:
    releases = {(name, release) for name, entry in TINY_FAMILIES.items() for release in entry.releases}
    assert BILLIONS.keys() == {(name, release) for name, release in releases if name != "llada21"}
    assert TINY_FAMILIES["llada21"].releases == TINY_FAMILIES["llada2"].releases


def size_of(config: dict[str, Any]) -> ModelSize:
    size = ModelSize.from_config(config)
    assert size is not None
    return size


@pytest.mark.parametrize(("family", "release"), BILLIONS)
def test_a_release_has_the_weights_of_its_module_and_as_many_as_listed(
    family: str, release: str, tmp_path: Path
) -> None:
    config = json_files(family, release=release)["config.json"]
    count = sum(math.prod(shape) for shape in stored_shapes(config, tmp_path).values())
    assert size_of(config).num_parameters == count
    assert count / 1e9 == pytest.approx(BILLIONS[family, release], rel=1e-3)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_tiny_checkpoint_has_the_weights_and_default_targets_of_its_policy(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "policy", layers=4)
    size = ModelSize.from_folder(folder)
    assert size is not None
    shapes = stored_shapes(json.loads((folder / "config.json").read_text()), folder)
    assert size.num_parameters == sum(math.prod(shape) for shape in shapes.values())
    policy = load_policy(folder, dtype="float32")
    layers = [policy.module.get_submodule(name) for name in policy.lora_targets]
    assert size.vocabulary == policy.vocabulary.size
    if family != "diffusion_gemma":  # which takes no adapter
        wide = sum(layer.in_features + layer.out_features for layer in layers if isinstance(layer, nn.Linear))
        assert size.num_adapter_parameters(16, None) == 16 * wide


CHANGES: dict[str, dict[str, Any]] = {
    "llada": {"weight_tying": True, "n_kv_heads": 2},
    "dream": {"tie_word_embeddings": True},
    "sdar_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
    "llada_moe": {"moe_layer_freq": [0, 1, 0], "num_key_value_heads": 2},
    "llada2": {"num_shared_experts": 0, "first_k_dense_replace": 2},
    "llada_v": {"num_key_value_heads": 2},
    "bert": {"type_vocab_size": 4},
}


@pytest.mark.parametrize("family", CHANGES)
def test_what_a_config_says_of_single_layers_and_heads_is_counted(family: str, tmp_path: Path) -> None:
    config = json_files(family, changes=CHANGES[family])["config.json"]
    count = sum(math.prod(shape) for shape in stored_shapes(config, tmp_path).values())
    assert size_of(config).num_parameters == count


def test_inspect_and_check_say_the_same(tmp_path: Path) -> None:
    folder = make_tiny("llada2", tmp_path / "policy")
    total = next(row for row in inspect_model(folder)["parameters"] if row.name == "total")
    assert total.explanation.startswith(
        f"{size_of(json.loads((folder / 'config.json').read_text())).num_parameters:,} in"
    )


def test_every_family_is_counted() -> None:
    assert set(COUNTS) == {*FAMILIES.values(), MASKED_LM_FAMILY}
    assert {**PHI_OF_SHOWO, **PHI_1_5} == PHI_OF_SHOWO


def test_a_config_without_sizes_has_no_size() -> None:
    assert ModelSize.from_config({"model_type": "llada", "d_model": 64}) is None
    assert ModelSize.from_config({"model_type": "showo"}) is None


def test_a_model_of_no_known_family_is_taken_for_a_llama_body() -> None:
    config = {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "hidden_size": 8,
        "vocab_size": 10,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    assert size_of(config).num_parameters == 3 * (4 * 8 * 8 + 3 * 8 * 16 + 2 * 8) + 2 * 10 * 8 + 8
