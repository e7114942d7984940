"""Aesthetics: the published head's scores, on a tiny OpenAI body in the published layout."""

import json

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from clip_specimens import (
    TEXTS,
    architecture,
    hub_snapshot,
    pictures,
    published_head,
    random_state,
    write_pickled,
    write_safetensors,
)
from safetensors.torch import load_file

from unigrpo.rewards.aesthetics import Aesthetics, affine_head
from unigrpo.rewards.clip_alignment import ClipAlignment
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.rewards.vision.published_weights import WeightsError, open_published
from unigrpo.testing.conformance import check_reward


@pytest.fixture(scope="module")
def affine(golden):
    return load_file(golden / "aesthetic_affine.safetensors")


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def head(affine, tmp_path_factory, patch):
    folder = tmp_path_factory.mktemp("head")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return str(write_pickled(folder / "sac+logos+ava1-l14-linearMSE.pth", published_head(affine)))


@pytest.fixture(scope="module")
def openai(tmp_path_factory, patch):
    """A tiny architecture with OpenAI's tag, whose weights lie in the hub's cache as the published ones do."""
    import open_clip.pretrained

    folder = tmp_path_factory.mktemp("openai")
    for name, is_quick in (("tiny-ViT-L-14", False), ("tiny-ViT-L-14-quickgelu", True)):
        architecture(folder / "configs", name, width=768, is_quick=is_quick)
        entry = open_clip.pretrained._pcfg(hf_hub="someone/tiny_clip.openai/", quick_gelu=True)
        patch.setitem(open_clip.pretrained._PRETRAINED, name, {"openai": entry})
    snapshot = hub_snapshot(folder / "hub", "someone/tiny_clip.openai")
    write_safetensors(snapshot / "open_clip_model.safetensors", random_state("tiny-ViT-L-14"))
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def reward(head, openai):
    return Aesthetics("tiny-ViT-L-14", "openai", head=head)


def test_published_layers_give_the_golden_scores(golden, head):
    recorded = json.loads((golden / "aesthetic_mlp.json").read_text())
    vectors = torch.randn(6, 768, generator=torch.Generator().manual_seed(7)).double().numpy()
    assert vectors[0, :4] == pytest.approx(recorded["x_first4"])
    weight, bias = affine_head(load_file(open_published(head)), head)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert unit @ weight + bias == pytest.approx(recorded["scores"], abs=1e-5)
    assert vectors @ weight + bias == pytest.approx(recorded["scores_without_normalisation"], abs=1e-4)
    assert (np.linalg.norm(weight), bias) == pytest.approx(
        (recorded["collapsed_weight_norm"], recorded["collapsed_bias"]), abs=1e-5
    )


def test_layers_are_multiplied_out_in_their_order():
    generator = torch.Generator().manual_seed(0)
    sizes = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    state, network = {}, []
    for number, (num_out, num_in) in sizes.items():
        layer = torch.nn.Linear(num_in, num_out)
        state[f"layers.{number}.weight"] = torch.randn(num_out, num_in, generator=generator) / num_in**0.5
        state[f"layers.{number}.bias"] = torch.randn(num_out, generator=generator)
        layer.load_state_dict({part: state[f"layers.{number}.{part}"] for part in ("weight", "bias")})
        network.append(layer)
    vectors = torch.randn(5, 768, generator=generator)
    with torch.no_grad():
        wanted = torch.nn.Sequential(*network)(vectors)[:, 0].numpy()
    weight, bias = affine_head(state, "head")
    assert vectors.double().numpy() @ weight + bias == pytest.approx(wanted, abs=1e-4)


def test_value_is_the_head_on_the_unit_vector_of_the_quick_gelu_body(reward, openai, affine):
    import open_clip

    values = {}
    for is_quick in (False, True):
        model, _, preprocess = open_clip.create_model_and_transforms(
            "tiny-ViT-L-14", pretrained=str(openai), force_quick_gelu=is_quick
        )
        with torch.no_grad():
            unit = model.eval().encode_image(torch.stack([preprocess(p) for p in pictures()]), normalize=True)
        values[is_quick] = (unit @ affine["weight"][0] + affine["bias"]).clamp(0, 10).tolist()
    given = reward(prompts=[""] * 5, completions=pictures())
    assert given == pytest.approx(values[True], abs=1e-4)
    assert np.abs(np.array(given) - values[False]).max() > 1e-2


def test_one_pass_serves_both_rewards_under_either_name_of_the_body(head, openai):
    aesthetics = Aesthetics("tiny-ViT-L-14-quickgelu", "openai", head=head)
    alignment = ClipAlignment("tiny-ViT-L-14", "openai")
    assert aesthetics._body is alignment._body
    before = aesthetics._body.num_encoded["pictures"]
    alignment(prompts=TEXTS[:1] * 3, completions=pictures()[:3])
    aesthetics(prompts=TEXTS[:1] * 3, completions=pictures()[:3])
    assert aesthetics._body.num_encoded["pictures"] - before in (0, 3)  # 0 where another test has shown them
    assert alignment._body.num_encoded["texts"] == 1


def test_reward_keeps_the_contract(reward):
    check_reward(reward, prompts=["-"] * 6, completions=[*pictures(), "text"])


def test_text_gets_none_and_an_unreadable_picture_the_least(reward):
    values = reward(prompts=["-"] * 3, completions=["text", RefusedPicture("too_large", ""), pictures()[0]])
    assert values[:2] == [None, 0.0]
    assert 0.0 < values[2] <= 10.0
    assert reward(prompts=["-"], completions=["text"]) == [None]


def test_score_beyond_human_ratings_is_cut(affine, tmp_path, openai):
    for bias, wanted in ((60.0, 10.0), (-60.0, 0.0)):
        path = write_safetensors(tmp_path / f"{bias}.safetensors", {**affine, "bias": torch.tensor([bias])})
        reward = Aesthetics("tiny-ViT-L-14", "openai", head=str(path))
        assert reward(prompts=[""], completions=pictures()[:1]) == [wanted]


def test_head_with_relu_between_its_layers_is_refused(affine):
    renamed = dict(zip((0, 2, 4, 6, 7), (0, 3, 6, 9, 11), strict=True))
    state = {
        f"layers.{renamed[int(key.split('.')[1])]}.{key.split('.')[2]}": value
        for key, value in published_head(affine).items()
    }
    with pytest.raises(WeightsError, match=r"wanted .*layers\.2\.bias"):
        affine_head(state, "relu.pth")


def test_body_of_another_width_is_refused(head):
    with pytest.raises(ValueError, match=r"reads vectors of 768, CLIP asset:tiny_clip gives 96"):
        Aesthetics("asset:tiny_clip", None, head=head)
