"""Weights that are no weights: refused at load by the names of tensor and file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora, merge_adapter, save_adapter
from unigrpo.models.pictures.magvit import load_image_tokenizer
from unigrpo.settings.policy import LoraSettings

GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"
LAYER = "model.transformer.blocks.0.q_proj.weight"
TABLE = "model.transformer.wte.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "policy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, copy / name)
    return copy


def put(file: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(file) | {name: tensor}, file)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=lambda dtype: str(dtype)
)
def test_a_weight_that_is_no_real_number_is_named_with_its_dtype(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    put(file, LAYER, torch.ones(load_file(file)[LAYER].shape).to(dtype))
    with pytest.raises(UserError, match=rf"model\.safetensors holds {LAYER} \([A-Z]+\w*\); wanted weights of"):
        load_policy(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_value_that_is_no_number_is_refused_wherever_it_stands(
    folder: Path, value: float, dtype: str, place: int
) -> None:
    file = folder / "model.safetensors"
    weight = load_file(file)[LAYER]
    weight.view(-1)[place] = value
    put(file, LAYER, weight)
    with pytest.raises(UserError, match=rf"model\.safetensors: the tensor {LAYER} has values that are NaN or infinite"):
        load_policy(folder, dtype=dtype)


def test_a_value_that_the_asked_dtype_cannot_hold_is_not_called_damage_of_the_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    weight = load_file(file)[LAYER].double()
    weight[0, 0] = 1e300
    put(file, LAYER, weight)
    with pytest.raises(UserError, match=rf"the tensor {LAYER} has values beyond torch\.float32"):
        load_policy(folder, dtype="float32")


@pytest.mark.parametrize("name", [LAYER, TABLE])
def test_a_layer_that_is_zero_throughout_is_refused_and_a_nearly_zero_one_is_not(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    weight = torch.zeros_like(load_file(file)[name])
    put(file, name, weight)
    with pytest.raises(UserError, match=rf"0 throughout: {name}"):
        load_policy(folder)
    weight[-1, -1] = 1e-3
    put(file, name, weight)
    load_policy(folder)


def test_adapter_of_nan_or_of_whole_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    policy = load_policy(folder, dtype="float32")
    add_lora(policy, LoraSettings(r=2, targets=["q_proj"]), seed=0)
    save_adapter(policy, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    name = next(iter(load_file(file)))
    whole = load_file(file)[name]
    merge_adapter(load_policy(folder), tmp_path / "adapter")  # a fresh one, whose B is 0, is right
    put(file, name, torch.full_like(whole, torch.nan))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: the tensor .* has values that are NaN"):
        merge_adapter(load_policy(folder), tmp_path / "adapter")
    put(file, name, torch.ones(whole.shape, dtype=torch.int32))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors holds .* \(I32\)"):
        merge_adapter(load_policy(folder), tmp_path / "adapter")


def test_an_image_tokenizer_with_nan_is_refused(tmp_path: Path) -> None:
    source = next((Path(__file__).parent.parent / "unigrpo/assets/tiny_magvit").glob("*.safetensors"))
    file = tmp_path / source.name
    shutil.copyfile(source, file)
    name = next(name for name in load_file(file) if name.endswith("weight"))
    put(file, name, torch.full_like(load_file(file)[name], torch.nan))
    with pytest.raises(UserError, match=rf"{source.name}: .*the tensor {name} has values that are NaN or infinite"):
        load_image_tokenizer(tmp_path)
