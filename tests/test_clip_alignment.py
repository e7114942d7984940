"""CLIP alignment: equal to open_clip called by hand, the same in any batch, and clear where weights are missing."""

import logging

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.assets import asset_folder
from unigrpo.quickstart.scenes import ImagineScenes, Item, Scene, UnderstandScenes, render
from unigrpo.rewards.base import Failed
from unigrpo.rewards.clip_alignment import ClipAlignment
from unigrpo.rewards.vision.open_clip_towers import resolve
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.testing.conformance import check_reward


@pytest.fixture(scope="module")
def reward():
    return ClipAlignment("asset:tiny_clip")


@pytest.fixture(scope="module")
def prompts():
    source = ImagineScenes("eval", 0)
    return [source[index] for index in range(96)]


def pictures(prompts, noise=0.0):
    rng = np.random.default_rng(0)
    return [ImagineScenes("eval", 0).demonstration(prompt, rng, noise) for prompt in prompts]


def texts(prompts):
    return [prompt.text for prompt in prompts]


def test_value_is_the_cosine_of_open_clip(reward, prompts):
    import open_clip

    name = f"local-dir:{asset_folder('tiny_clip')}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenize = open_clip.get_tokenizer(name)
    shown = pictures(prompts[:8], 0.5)
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([preprocess(picture) for picture in shown]), normalize=True)
        text = model.encode_text(tokenize(texts(prompts[:8])), normalize=True)
    expected = (image * text).sum(dim=-1).clamp(min=0).tolist()
    assert reward(prompts=texts(prompts[:8]), completions=shown) == pytest.approx(expected, abs=1e-5)


def test_batch_of_n_equals_n_of_one(reward, prompts):
    shown = pictures(prompts, 0.5)
    together = reward(prompts=texts(prompts), completions=shown)
    alone = [reward(prompts=[prompt.text], completions=[one])[0] for prompt, one in zip(prompts, shown, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) > 48


def test_reward_keeps_the_contract(reward, prompts):
    check_reward(
        reward,
        prompts=texts(prompts[:10]),
        completions=[*pictures(prompts[:8], 0.5), "a red circle", "4"],
        images=[*[[]] * 8, pictures(prompts[:1]), []],
    )


def test_scale_multiplies_and_declares_its_range(reward, prompts):
    percent = ClipAlignment("asset:tiny_clip", scale=100)
    shown = pictures(prompts[:4])
    ones = reward(prompts=texts(prompts[:4]), completions=shown)
    assert percent(prompts=texts(prompts[:4]), completions=shown) == pytest.approx([100 * value for value in ones])
    assert (reward.range, percent.range) == ((0.0, 1.0), (0.0, 100.0))


def test_right_picture_is_preferred_to_one_with_a_mistake(reward, prompts):
    right = reward(prompts=texts(prompts), completions=pictures(prompts))
    wrong = reward(prompts=texts(prompts), completions=pictures(prompts, 1.0))
    assert np.mean(np.array(right) > np.array(wrong)) >= 0.95
    assert all(0.0 <= value <= 1.0 for value in right + wrong)


def test_generated_caption_is_compared_without_its_reasoning(reward):
    picture = render(
        Scene(cells={(1, 0): Item(color="red", shape="circle"), (1, 3): Item(color="blue", shape="square")})
    )
    captions = [
        "red circle left of blue square",
        "<think>green triangle, green circle</think>red circle left of blue square",
        "green triangle above yellow circle",
        "<think>red circle left of blue square</think>",
    ]
    values = reward(prompts=["describe"] * 4, completions=captions, images=[[picture]] * 4)
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert values[0] > values[2]
    assert values[3] == 0.0


def test_several_pictures_of_a_prompt_count_by_their_mean(reward):
    shown = [prompt.images[0] for prompt in (UnderstandScenes("train", 0)[i] for i in range(2))]
    one, two = (reward(prompts=["-"], completions=["a red circle"], images=[[picture]])[0] for picture in shown)
    both = reward(prompts=["-"], completions=["a red circle"], images=[shown])[0]
    assert both == pytest.approx((one + two) / 2, abs=1e-5) or 0.0 in (one, two)


def test_text_without_a_picture_gets_none(reward, prompts):
    shown = pictures(prompts[:1])
    values = reward(prompts=["2+2?", prompts[0].text, "-"], completions=["4", shown[0], "5"], images=[[], None, None])
    assert values[0] is None
    assert values[1] > 0
    assert values[2] is None
    assert reward(prompts=["2+2?"], completions=["4"]) == [None]


def test_empty_prompt_for_a_picture_is_worth_nothing(reward):
    assert reward(prompts=["  "], completions=[Image.new("RGB", (64, 64))]) == [0.0]


def test_texts_that_are_cut_are_counted_and_logged(prompts, caplog):
    reward = ClipAlignment("asset:tiny_clip")
    logged = {}
    long = "red circle left of blue square and " * 10
    shown = pictures(prompts[:1]) * 2
    with caplog.at_level(logging.WARNING):
        reward(prompts=[long, prompts[0].text], completions=shown, log_metric=logged.__setitem__)
    assert reward.num_truncated == 1
    assert logged == {"clip_alignment/truncated_fraction": 0.5, "pictures/refused_fraction": 0.0}
    assert "1 of 2 texts exceed the 16 tokens" in caplog.text


def test_all_modes_of_pictures_are_read(reward, prompts):
    shown = pictures(prompts[:1])[0]
    as_rgb, as_rgba = (
        reward(prompts=[prompts[0].text], completions=[shown.convert(mode)])[0] for mode in ("RGB", "RGBA")
    )
    assert as_rgb == as_rgba


def test_weights_do_not_change(reward):
    assert not any(parameter.requires_grad for parameter in reward._body.towers.model.parameters())
    assert not reward._body.towers.model.training


def test_unknown_models_and_tags_are_named():
    with pytest.raises(ValueError, match=r"'ViT-XXL' is none of open_clip's names"):
        ClipAlignment("ViT-XXL", "openai")
    with pytest.raises(ValueError, match=r"give a file of weights or one of .*openai"):
        ClipAlignment("ViT-L-14", "nothing")
    with pytest.raises(ValueError, match=r"pretrained=None"):
        ClipAlignment("ViT-L-14")
    with pytest.raises(ValueError, match="scale 0"):
        ClipAlignment("asset:tiny_clip", scale=0)


def test_folder_without_weights_is_refused_rather_than_random(tmp_path):
    (tmp_path / "open_clip_config.json").write_text((asset_folder("tiny_clip") / "open_clip_config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"holds no open_clip_model\.safetensors"):
        ClipAlignment(f"local-dir:{tmp_path}")


def test_missing_weights_fail_at_once_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        ClipAlignment("ViT-L-14", "openai")
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        ClipAlignment("hf-hub:someone/some-clip")


def test_openai_weights_get_quick_gelu_under_either_name(monkeypatch, tmp_path):
    snapshot = tmp_path / "models--timm--vit_large_patch14_clip_224.openai" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve("ViT-L-14", "openai") == ("ViT-L-14", "openai", True)
    assert resolve("ViT-L-14-quickgelu", "openai") == ("ViT-L-14-quickgelu", "openai", True)


def test_refused_picture_costs_the_policy_but_not_one_who_was_shown_it(reward, prompts):
    broken = RefusedPicture("unreadable", "cut short")
    shown = pictures(prompts[:1])[0]
    logged = {}
    values = reward(
        prompts=[prompts[0].text, prompts[0].text, "-", "-"],
        completions=[shown, broken, "a red circle", "a red circle"],
        images=[None, None, [broken], [broken, shown]],
        log_metric=logged.__setitem__,
    )
    assert values[0] == pytest.approx(reward(prompts=[prompts[0].text], completions=[shown])[0], abs=1e-6)
    assert values[1] == 0.0
    assert isinstance(values[2], Failed)
    assert values[3] == reward(prompts=["-"], completions=["a red circle"], images=[[shown]])[0]
    assert logged["pictures/refused_fraction/unreadable"] == 3 / 5
