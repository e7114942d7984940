"""The image tokenizer and the CLIP that ship with the package do what the quickstart needs of them."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.assets import asset_folder
from unigrpo.models.pictures.magvit import load_image_tokenizer
from unigrpo.quickstart.makers.clip import LOGIT_SCALE, VOCABULARY, Example, contrast, example
from unigrpo.quickstart.makers.image_tokenizer import SIZES, examples, fit, untrained
from unigrpo.quickstart.scenes import random_scene, render, scene_of_kinds
from unigrpo.rewards.scene import read_scene


@pytest.fixture(scope="module")
def tokenizer():
    return load_image_tokenizer("asset:tiny_magvit")


def to_pictures(pixels):
    rounded = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(one) for one in rounded.permute(0, 2, 3, 1).numpy()]


def truth(kinds):
    scene = scene_of_kinds(kinds.reshape(4, 4).numpy())
    return sorted((item.color, item.shape, *cell) for cell, item in scene.cells.items())


def test_tokenizer_has_sixteen_codes_of_16_by_16_pixels(tokenizer):
    assert (tokenizer.codebook_size, tokenizer.downsampling) == (16, 16)


def test_assets_are_small():
    assert sum(file.stat().st_size for file in asset_folder("tiny_magvit").iterdir()) < 4_000_000
    assert sum(file.stat().st_size for file in asset_folder("tiny_clip").iterdir()) < 3_000_000


def test_code_of_a_cell_is_its_kind(tokenizer):
    pixels, kinds = examples(np.random.default_rng(11), 200)
    assert (tokenizer.encode(pixels) == kinds).all(dim=1).float().mean() >= 0.99


def test_decoded_pictures_of_any_number_of_objects_are_read_back(tokenizer):
    pixels, kinds = examples(np.random.default_rng(12), 200)
    shown = to_pictures(tokenizer.decode(tokenizer.encode(pixels)))
    assert np.mean([sorted(read_scene(one)) == truth(row) for one, row in zip(shown, kinds, strict=True)]) >= 0.99


def test_codes_survive_decoding_and_encoding(tokenizer):
    grids = torch.from_numpy(np.random.default_rng(13).integers(0, 16, (200, 16)))
    assert (tokenizer.encode(tokenizer.decode(grids)) == grids).all(dim=1).float().mean() >= 0.99


def test_training_is_deterministic_and_lowers_the_loss():
    def train():
        model, rng = untrained(SIZES, 0), np.random.default_rng(0)
        pixels, kinds = examples(rng, 2)
        signs = model.quantize.signs(kinds).transpose(1, 2)
        model.encoder.requires_grad_(True)

        def losses():
            for _ in range(6):
                yield torch.relu(1 - model.encoder(pixels).flatten(2) * signs).mean()

        first = float(next(losses()).detach())
        return first, fit(model.encoder.parameters(), losses(), 6, 3e-3), model.encoder.conv_in.weight.clone()

    (first, last, weight), (_, _, again) = train(), train()
    assert last < first
    assert torch.equal(weight, again)


def test_clip_loads_by_open_clip_and_its_words_are_known(caplog):
    import open_clip

    name = f"local-dir:{asset_folder('tiny_clip')}"
    with caplog.at_level(logging.WARNING):
        open_clip.create_model(name, require_pretrained=True)
    assert not caplog.records
    tokenize = open_clip.get_tokenizer(name)
    ids = tokenize(["Red circle, left of blue square", "zebra"])
    words = [VOCABULARY[index] for index in ids[0]]
    assert words[:10] == ["<start>", "red", "circle", ",", "left", "of", "blue", "square", "<end>", "<pad>"]
    assert [VOCABULARY[index] for index in ids[1][:3]] == ["<start>", "<unk>", "<end>"]


def test_wrong_examples_of_clip_are_wrong():
    rng = np.random.default_rng(0)
    for _ in range(100):
        one = example(rng)
        assert isinstance(one, Example)
        assert one.text not in one.wrong_texts
        assert all((scene.kinds != one.scene.kinds).any() for scene in one.wrong_scenes)


def test_contrast_equals_slow_loops():
    scores = torch.tensor([[2.0, 1.0, 0.5], [0.3, 1.5, -1.0]])
    own = torch.tensor([[True, False, True], [False, True, False]])
    slow = -(2.0 - np.log(np.exp(2.0) + np.exp(1.0))) - (1.5 - np.log(np.exp(0.3) + np.exp(1.5) + np.exp(-1.0)))
    assert float(contrast(scores, own)) == pytest.approx(slow / 2)


def test_clip_config_is_open_clips():
    config = json.loads((asset_folder("tiny_clip") / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == len(VOCABULARY)
    assert LOGIT_SCALE == 10.0


def test_rendered_and_decoded_pictures_look_alike(tokenizer):
    rng = np.random.default_rng(3)
    for _ in range(5):
        scene = random_scene(rng, 2)
        kinds = torch.from_numpy(scene.kinds.reshape(1, 16))
        decoded = np.asarray(to_pictures(tokenizer.decode(kinds))[0], dtype=float)
        assert np.abs(decoded - np.asarray(render(scene), dtype=float)).mean() < 4
