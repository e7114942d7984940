"""MAGVIT-v2 against the reference's outputs on a tiny random model, and its loader against files that do not fit."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.models.files.folders import resolve_folder
from unigrpo.models.pictures.magvit import build_image_tokenizer, load_image_tokenizer, sizes_of

GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"


def golden_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """Make a weight by the recipe in the golden folder's README."""
    seed = int.from_bytes(hashlib.sha256(f"20261122:{key}".encode()).digest()[:6], "big")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if "norm" in key and key.endswith("weight"):
        return 1 + 0.2 * noise
    if key.endswith("bias"):
        return 0.2 * noise
    gain = 20.0 if key == "encoder.quant_conv.weight" else 1.4
    return gain * noise / math.sqrt(noise[0].numel())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "magvit_tiny" / "golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def tensors(golden):
    shapes = json.loads((GOLDEN / "magvit_tiny" / "state_dict_shapes.json").read_text())
    made = {key: golden_tensor(key, shape) for key, shape in sorted(shapes.items()) if not key.startswith("quantize.")}
    return made | {"quantize.embedding": golden["codebook"], "quantize.power_vals": golden["power_vals"]}


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("magvit")
    save_file(tensors, path / "pytorch_model.safetensors")
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_image_tokenizer(folder)


def test_sizes_come_from_the_tensors(tokenizer):
    assert (tokenizer.codebook_size, tokenizer.downsampling) == (128, 16)


@pytest.mark.parametrize(("image", "codes"), [("image", "codes"), ("image", "get_code"), ("image_rect", "codes_rect")])
def test_codes_equal_the_reference(tokenizer, golden, image, codes):
    mine = tokenizer.encode(golden[image])
    assert mine.dtype == torch.int64
    assert torch.equal(mine, golden[codes])


def test_latents_equal_the_reference(tokenizer, golden):
    assert (tokenizer.encoder(golden["image"]) - golden["z_pre_quant"]).abs().max() < 2e-4  # of values up to 74


@pytest.mark.parametrize(
    ("codes", "grid", "pixels"),
    [
        ("codes", None, "decoded"),
        ("codes_rect", (4, 6), "decoded_rect_shape_4_6"),
        ("allcodes", None, "decoded_allcodes"),
    ],
)
def test_pixels_equal_the_reference(tokenizer, golden, codes, grid, pixels):
    assert (tokenizer.decode(golden[codes], grid) - golden[pixels]).abs().max() <= 1e-4


def test_first_channel_is_the_most_significant_bit(tokenizer):
    latent = torch.full((1, 7, 1, 1), -1.0)
    latent[0, 0] = 1.0
    assert tokenizer.quantize.codes(latent).item() == 64


def test_batch_of_two_equals_two_of_one(tokenizer, golden):
    alone = torch.cat([tokenizer.encode(picture[None]) for picture in golden["image"]])
    assert torch.equal(alone, tokenizer.encode(golden["image"]))


def test_released_layout_is_the_one_built():
    shapes = json.loads((GOLDEN / "magvitv2_full_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        built = build_image_tokenizer({name: torch.empty(shape) for name, shape in shapes.items()})
    assert len(shapes) == 382
    assert {name: list(tensor.shape) for name, tensor in built.state_dict().items()} == shapes
    assert (built.codebook_size, built.downsampling) == (8192, 16)
    assert [level.num_blocks for level in sizes_of(shapes).down] == [4, 3, 4, 3, 4]
    assert [level.num_blocks for level in sizes_of(shapes).up] == [4, 4, 3, 4, 3]


def test_weights_need_no_gradient(tokenizer):
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_second_file_name_is_read_too(tensors, golden, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(load_image_tokenizer(str(tmp_path)).encode(golden["image"]), golden["codes"])


def test_tensors_that_do_not_fit_are_named(tensors):
    broken = dict(tensors)
    broken["decoder.extra.weight"] = broken.pop("decoder.mid.attn_1.q.weight")
    broken["encoder.conv_out.bias"] = torch.zeros(9)
    with pytest.raises(ValueError, match=r"attn_1\.q\.weight is missing") as error:
        build_image_tokenizer(broken)
    assert "decoder.extra.weight is unknown" in str(error.value)
    assert "encoder.conv_out.bias is [9], wanted [7]" in str(error.value)


def test_another_models_file_is_refused(tmp_path):
    save_file({"model.wte.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: no tensor encoder.conv_in.weight"):
        load_image_tokenizer(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(FileNotFoundError, match="convert it to safetensors"):
        load_image_tokenizer(tmp_path)


def test_sides_that_do_not_divide_are_refused_with_the_way_out(tokenizer):
    with pytest.raises(ValueError, match="resize or crop it to 48 x 64"):
        tokenizer.encode(torch.zeros(1, 3, 60, 64))


def test_pixels_of_0_to_255_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"uint8 / 127.5 - 1"):
        tokenizer.encode(torch.full((1, 3, 16, 16), 200.0))
    with pytest.raises(ValueError, match=r"torch.uint8"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_codes_that_make_no_square_ask_for_a_grid(tokenizer):
    with pytest.raises(ValueError, match=r"24 codes do not make a square; give grid="):
        tokenizer.decode(torch.zeros(1, 24, dtype=torch.int64))
    with pytest.raises(ValueError, match="5 x 5"):
        tokenizer.decode(torch.zeros(1, 24, dtype=torch.int64), (5, 5))


def test_codes_outside_the_codebook_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"0\.\.127; subtract the offset"):
        tokenizer.decode(torch.full((1, 16), 505))


def test_unknown_folders_and_assets_say_what_would_do():
    with pytest.raises(FileNotFoundError, match="asset:NAME"):
        load_image_tokenizer("/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="ships with the package"):
        resolve_folder("asset:nothing")


def test_file_is_left_as_it_was(folder, tensors):
    stored = load_file(folder / "pytorch_model.safetensors")
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
