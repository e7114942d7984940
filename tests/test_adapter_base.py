"""An adapter knows its base: on another one it is refused by name, on its own one it loads in any dtype."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora, merge_adapter, save_adapter, save_merged
from unigrpo.settings.policy import LoraSettings
from unigrpo.sizing.inspection import inspect_model
from unigrpo.testing.tiny.make_tiny import make_tiny

LORA = LoraSettings(r=2)


def trained(base: Path, out: Path, *before: Path, seed: int = 0, dtype: str = "float32") -> Path:
    """Save an adapter that changes its base, over adapters merged before."""
    policy = load_policy(base, dtype=dtype)
    for adapter in before:
        merge_adapter(policy, adapter)
    add_lora(policy, LORA, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.module.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(policy, out)
    return out


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny("llada", tmp_path / "base")


def test_an_adapter_over_an_adapter_loads_on_its_stack_and_on_nothing_else(base: Path, tmp_path: Path) -> None:
    first, other = trained(base, tmp_path / "first"), trained(base, tmp_path / "other", seed=1)
    second = trained(base, tmp_path / "second", first)
    said = json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert said == "base + first"  # a name that no other program loads as if it were the base alone
    for dtype in ("float32", "bfloat16"):
        policy = load_policy(base, dtype=dtype)
        merge_adapter(policy, first)
        merge_adapter(policy, second)
    for stack in ([], [other]):
        policy = load_policy(base, dtype="float32")
        for adapter in stack:
            merge_adapter(policy, adapter)
        with pytest.raises(UserError, match=r"was trained on base \+ first and this base is base"):
            merge_adapter(policy, second)


def test_the_same_adapter_is_the_same_file(base: Path, tmp_path: Path) -> None:
    files = [trained(base, tmp_path / f"{number}") / "adapter_model.safetensors" for number in range(4)]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_moved_and_renamed_stack_is_the_same_base(base: Path, tmp_path: Path) -> None:
    first = trained(base, tmp_path / "first")
    second = trained(base, tmp_path / "second", first)
    elsewhere = tmp_path / "elsewhere"
    for folder in (base, first, second):
        shutil.copytree(folder, elsewhere / f"my-{folder.name}")
    policy = load_policy(elsewhere / "my-base")
    merge_adapter(policy, elsewhere / "my-first")
    merge_adapter(policy, elsewhere / "my-second")


def test_another_checkpoint_of_the_same_shapes_is_refused_and_a_converted_one_is_not(
    base: Path, tmp_path: Path
) -> None:
    adapter = trained(base, tmp_path / "adapter")
    file = base / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, file)
    merge_adapter(load_policy(base, dtype="bfloat16"), adapter)
    save_file({name: tensor * 1.02 for name, tensor in state.items()}, file)
    with pytest.raises(UserError, match="was trained on base and this base is base, whose weights are others"):
        merge_adapter(load_policy(base), adapter)


def test_merged_weights_are_a_base_of_their_own(base: Path, tmp_path: Path) -> None:
    first = trained(base, tmp_path / "first")
    policy = load_policy(base, dtype="float32")
    merge_adapter(policy, first)
    save_merged(policy, tmp_path / "merged")
    on_merged = trained(tmp_path / "merged", tmp_path / "on_merged")
    merge_adapter(load_policy(tmp_path / "merged"), on_merged)
    with pytest.raises(UserError, match="was trained on merged and this base is base"):
        merge_adapter(load_policy(base), on_merged)


def test_an_adapter_of_another_program_says_nothing_and_loads(base: Path, tmp_path: Path) -> None:
    adapter = trained(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    (base / "model.safetensors").unlink()
    make_tiny("llada", tmp_path / "another", seed=1)
    merge_adapter(load_policy(tmp_path / "another"), adapter)


def test_an_expert_is_wrapped_by_its_full_name_alone_and_named_where_it_is_not(tmp_path: Path) -> None:
    policy = load_policy(make_tiny("llada_moe", tmp_path / "moe"), dtype="float32")
    expert = next(name for name, _ in policy.module.named_modules() if ".experts.0." in name)
    assert not any(".experts." in name for name in policy.lora_targets)
    with pytest.raises(UserError, match=r"only routed experts .* such as .*experts\.0\."):
        add_lora(policy, LoraSettings(r=2, targets=[expert.rsplit(".", 1)[-1]]), seed=0)
    router = next(name for name, tensor in policy.module.named_parameters() if name.endswith("gate.weight"))
    with pytest.raises(UserError, match=r"is one tensor and no linear layer .* lora\.enabled: false"):
        add_lora(policy, LoraSettings(r=2, targets=[router]), seed=0)
    add_lora(policy, LoraSettings(r=2, targets=[expert]), seed=0)
    save_adapter(policy, tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sorted(state) == [f"base_model.model.{expert}.lora_{part}.weight" for part in "AB"]


def test_inspect_counts_the_layers_that_lora_reaches_and_those_of_experts(tmp_path: Path) -> None:
    folder = make_tiny("llada_moe", tmp_path / "moe")
    policy = load_policy(folder)
    experts = [name for name, part in policy.module.named_modules() if ".experts." in name and hasattr(part, "weight")]
    (row,) = [row for row in inspect_model(folder)["parameters"] if row.name == "LoRA"]
    assert row.value == f"{len(policy.lora_targets)} layers"
    assert f"not the {len(experts)} of routed experts" in row.explanation
    (row,) = [row for row in inspect_model(make_tiny("llada", tmp_path / "dense"))["parameters"] if row.name == "LoRA"]
    assert "experts" not in row.explanation and "q_proj" in row.explanation
