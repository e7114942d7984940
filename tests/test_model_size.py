"""How large a model is follows from its files' headers: the numbers of the module that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unigrpo.models import load_policy
from unigrpo.models.loading import stored_shapes
from unigrpo.sizing.inspection import inspect_model
from unigrpo.sizing.model_size import ModelSize, released_sizes
from unigrpo.testing.tiny.layouts import layouts
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
    releases = {(name, release) for name, layout in layouts().items() for release in layout.releases}
    assert BILLIONS.keys() == {(name, release) for name, release in releases if name != "llada21"}
    assert layouts()["llada21"].releases == layouts()["llada2"].releases


@pytest.mark.parametrize(("family", "release"), BILLIONS)
def test_a_release_is_as_large_as_listed(family: str, release: str, tmp_path: Path) -> None:
    config = json_files(family, release=release)["config.json"]
    size = ModelSize.from_shapes(stored_shapes(config, tmp_path), config)
    assert size is not None
    assert size.num_parameters / 1e9 == pytest.approx(BILLIONS[family, release], rel=1e-3)
    assert size.num_layers == next(
        value for key, value in layouts()[family].releases[release].items() if key == layouts()[family].layers_key
    )


RELEASED = {
    "llada-8b": ("llada", "8b"),
    "mmada-8b": ("mmada", "8b"),
    "sdar-8b": ("sdar", "8b"),
    "trado-8b": ("sdar", "8b"),
}


def test_sizes_that_are_known_by_a_released_name_are_those_of_the_release(tmp_path: Path) -> None:
    known = released_sizes()
    assert known.keys() == RELEASED.keys()
    for start, (family, release) in RELEASED.items():
        config = json_files(family, release=release)["config.json"]
        found = ModelSize.from_shapes(stored_shapes(config, tmp_path), config)
        assert found == known[start]


@pytest.mark.parametrize("family", layouts())
def test_a_tiny_checkpoint_has_the_weights_and_default_targets_of_its_policy(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "policy", layers=4, shard_bytes=100_000)
    size = ModelSize.from_folder(folder)
    assert size is not None
    policy = load_policy(folder, dtype="float32")
    state = {id(tensor): tensor for tensor in policy.module.state_dict(keep_vars=True).values()}
    assert size.num_parameters == sum(tensor.numel() for tensor in state.values())
    assert (size.vocabulary, size.num_layers) == (policy.vocabulary.size, 4)
    layers = [policy.module.get_submodule(name) for name in policy.lora_targets]
    wide = sum(layer.in_features + layer.out_features for layer in layers if isinstance(layer, nn.Linear))
    if family != "diffusion_gemma":  # which takes no adapter
        assert size.num_adapter_parameters(16, None) == 16 * wide


def test_a_body_of_one_linear_layer_a_block_by_hand() -> None:
    shapes = {
        "model.embed_tokens.weight": (10, 8),
        "model.layers.0.q_proj.weight": (4, 8),
        "model.layers.0.q_proj.bias": (4,),
        "model.layers.1.q_proj.weight": (4, 8),
        "model.layers.1.experts.0.up_proj.weight": (6, 8),
        "model.norm.weight": (8,),
    }
    size = ModelSize.from_shapes(shapes, {"moe_intermediate_size": 6, "num_experts_per_tok": 2})
    assert size == ModelSize(
        num_layers=2,
        width=8,
        mlp_width=12,
        vocabulary=10,
        num_parameters=80 + 2 * 32 + 4 + 48 + 8,
        linears={"q_proj": 24},
    )


def test_tensors_that_the_family_leaves_out_are_not_counted(tmp_path: Path) -> None:
    folder = make_tiny("bert", tmp_path / "policy")
    before = ModelSize.from_folder(folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"bert.pooler.dense.weight": torch.zeros(64, 64)}, file)
    assert ModelSize.from_folder(folder) == before


def test_inspect_and_check_say_the_same(tmp_path: Path) -> None:
    folder = make_tiny("llada2", tmp_path / "policy")
    total = next(row for row in inspect_model(folder)["parameters"] if row.name == "total")
    size = ModelSize.from_folder(folder)
    assert size is not None
    assert total.explanation.startswith(f"{size.num_parameters:,} in")


def test_files_that_cannot_be_read_have_no_size(tmp_path: Path) -> None:
    folder = make_tiny("llada", tmp_path / "policy")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    assert ModelSize.from_folder(folder) is None
    (folder / "model.safetensors").unlink()
    assert ModelSize.from_folder(folder) is None
    assert ModelSize.from_shapes({"something.0.weight": (2, 2)}, {}) is None
