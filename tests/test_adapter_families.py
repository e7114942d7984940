"""Adapters of every family load in plain PEFT on a module whose layers have the names of the released files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unigrpo.models import load_policy
from unigrpo.models.adapter import adapter_state, add_lora, save_adapter, set_adapter_state
from unigrpo.models.loading import read_config, stored_shapes
from unigrpo.settings.policy import LoraSettings
from unigrpo.testing.tiny.layouts import layouts
from unigrpo.testing.tiny.make_tiny import make_tiny


def stand_in(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Return linear layers alone, at the places that the names of the files' matrices say."""
    root = nn.Module()
    for name, shape in shapes.items():
        *parents, layer, leaf = name.split(".")
        if leaf != "weight" or len(shape) != 2:
            continue
        place = root
        for parent in parents:
            if parent not in dict(place.named_children()):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(layer, nn.Linear(shape[1], shape[0], bias=False))
    return root


@pytest.mark.parametrize("family", layouts())
def test_saved_adapter_fits_the_released_names_in_plain_peft(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = make_tiny(family, tmp_path / "policy")
    policy = load_policy(folder, dtype="float32")
    if not policy.abilities.trained:
        pytest.skip(f"{family} generates only")
    add_lora(policy, LoraSettings(r=2, alpha=6.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in adapter_state(policy).items()}
    set_adapter_state(policy, drawn)
    save_adapter(policy, tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == drawn.keys()

    shapes = stored_shapes(read_config(folder), folder)
    reference: Any = PeftModel.from_pretrained(cast(Any, stand_in(shapes)), str(tmp_path / "adapter"))
    for target in policy.lora_targets:
        theirs = reference.base_model.model.get_submodule(target)
        assert theirs.scaling["default"] == 3.0
        for part in ("lora_A", "lora_B"):
            wanted = drawn[f"base_model.model.{target}.{part}.weight"]
            assert torch.equal(getattr(theirs, part)["default"].weight, wanted)
        ours: Any = policy.module.get_submodule(target)
        inputs = torch.ones(1, theirs.in_features)
        delta = theirs(inputs) - theirs.base_layer(inputs)
        assert torch.allclose(ours(inputs) - ours.base_layer(inputs), delta, atol=1e-4)
    count = sum(name.endswith("lora_A.default.weight") for name, _ in reference.named_parameters())
    assert count == len(policy.lora_targets)
