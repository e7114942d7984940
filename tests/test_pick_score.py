"""PickScore: a checkpoint in the published layout gives what transformers' own CLIP forward gives."""

import json

import numpy as np
import pytest
import torch
from clip_specimens import TEXTS, noise, pictures, transformers_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from unigrpo.rewards.pick_score import PickScore
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.rewards.vision.published_weights import WeightsError
from unigrpo.testing.conformance import check_reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return transformers_clip(tmp_path_factory.mktemp("pick") / "PickScore_v1")


@pytest.fixture(scope="module")
def reward(folder):
    return PickScore(f"local-dir:{folder}")


def expected(folder, texts, shown):
    """The diagonal of logits_per_image of the model itself, one pair at a time, uncut texts without padding."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    values = []
    for text, picture in zip(texts, shown, strict=True):
        width, height = picture.size
        factor = 32 / min(width, height)
        resized = picture.resize((int(width * factor), int(height * factor)), Image.Resampling.BICUBIC)
        left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
        pixels = torch.tensor(list(resized.crop((left, top, left + 32, top + 32)).tobytes())).view(32, 32, 3) / 255
        mean, std = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        )
        with torch.no_grad():
            output = model(
                input_ids=tokenizer(text, return_tensors="pt").input_ids,
                pixel_values=((pixels - mean) / std).permute(2, 0, 1)[None],
            )
        values.append(float(output.logits_per_image[0, 0]))
    return values


def test_value_is_the_logit_of_the_model_itself(reward, folder):
    texts = [TEXTS[index % len(TEXTS)] for index in range(5)]
    wanted = expected(folder, texts, pictures())
    cosines = reward._body.cosines(texts, pictures())
    assert [reward.range[1] * cosine for cosine in cosines] == pytest.approx(wanted, abs=2e-3)
    assert np.std(wanted) > 0.5
    held = [max(0.0, value) for value in wanted]
    assert reward(prompts=texts, completions=pictures()) == pytest.approx(held, abs=2e-3)


def test_range_is_the_scale_of_the_model(reward, folder):
    assert reward.range == pytest.approx((0.0, 100.0), abs=0.01)
    cosine = PickScore(f"local-dir:{folder}", scale=1.0)
    assert cosine.range == (0.0, 1.0)
    one, other = (each(prompts=TEXTS[:1], completions=pictures()[:1])[0] for each in (reward, cosine))
    assert one == pytest.approx(reward.range[1] * other, rel=1e-6)


def test_reward_keeps_the_contract(reward):
    check_reward(
        reward,
        prompts=[TEXTS[index % len(TEXTS)] for index in range(6)],
        completions=[*pictures(), "text"],
        tolerance=1e-3,  # the scale is 100, so 1e-5 in the cosine
    )


def test_text_gets_none_and_an_unreadable_picture_the_least(reward):
    values = reward(
        prompts=["a", "a", " ", "a"],
        completions=["text", RefusedPicture("empty", ""), noise(1), Image.new("1", (1, 1))],
    )
    assert values[:3] == [None, 0.0, 0.0]
    assert values[3] is not None


def test_long_prompt_is_cut_as_the_published_code_cuts_it(reward):
    logged = {}
    long = "word " * 200
    values = reward(prompts=[long, "word " * 300], completions=[noise(1)] * 2, log_metric=logged.__setitem__)
    assert values[0] == values[1]
    assert logged["pick_score/truncated_fraction"] == 1.0


def test_incomplete_weights_are_refused_rather_than_filled_with_noise(folder, tmp_path):
    state = load_file(folder / "model.safetensors")
    lost = sorted(state)[0]
    del state[lost]
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 tensors"):
        PickScore(f"local-dir:{tmp_path}")


def test_wrong_hash_and_missing_files_are_named(folder, tmp_path):
    with pytest.raises(WeightsError, match="has sha256"):
        PickScore(f"local-dir:{folder}@{'0' * 64}")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        PickScore(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="hf-hub:OWNER/NAME"):
        PickScore("yuvalkirstain/PickScore_v1")
    with pytest.raises(ValueError, match="scale 0"):
        PickScore(f"local-dir:{folder}", scale=0)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        PickScore(f"local-dir:{tmp_path}")
