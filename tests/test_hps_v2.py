"""HPS v2: the published checkpoint's layout, the authors' letterbox, and cosines that half precision would blur."""

import numpy as np
import pytest
import torch
from clip_specimens import TEXTS, architecture, noise, pictures, random_state, write_pickled
from PIL import Image

from unigrpo.rewards.hps_v2 import HpsV2, letterboxed
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.testing.conformance import check_reward

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As HPS_v2.1_compressed.pt is: half precision, under ``state_dict``, beside what training left."""
    folder = tmp_path_factory.mktemp("hps")
    architecture(folder / "configs", "tiny-ViT-H-14", width=24)
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in random_state("tiny-ViT-H-14", seed=1).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield write_pickled(folder / "HPS_v2.1_compressed.pt", {"epoch": 1, "name": "hps", "state_dict": state})


@pytest.fixture(scope="module")
def reward(checkpoint):
    return HpsV2(str(checkpoint), model="tiny-ViT-H-14")


def authors_input(picture, size):
    """The steps of the published preprocessing, with torchvision's own functions."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as steps

    pixels = steps.to_tensor(picture)
    factor = size / float(max(pixels.shape[1:]))
    if factor != 1.0:
        new = [round(side * factor) for side in pixels.shape[1:]]
        pixels = steps.resize(pixels, new, InterpolationMode.BICUBIC)
        high, wide = size - new[0], size - new[1]
        pixels = steps.pad(pixels, [wide // 2, high // 2, wide - wide // 2, high - high // 2], fill=0)
    return steps.normalize(pixels, MEAN, STD)


@pytest.mark.parametrize("index", range(5))
def test_picture_is_prepared_as_the_authors_prepare_it(index):
    picture = pictures()[index]
    given = letterboxed(picture, 224, MEAN, STD, antialias=True)
    assert given.shape == (3, 224, 224)
    assert torch.allclose(given, authors_input(picture, 224), atol=1e-5)


def test_picture_of_the_right_length_keeps_its_pixels_and_gets_black_edges():
    picture = noise(0, (32, 16))
    given = letterboxed(picture, 32, (0.0,) * 3, (1.0,) * 3, antialias=True)
    pixels = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1)
    assert torch.equal(given[:, 8:24], pixels)
    assert given[:, :8].abs().max() == given[:, 24:].abs().max() == 0


def test_pixels_between_are_dropped_only_without_antialiasing():
    stripes = Image.fromarray(np.tile(np.array([[0, 255] * 32], dtype=np.uint8).T, (1, 64)))
    given = {
        flag: letterboxed(stripes.convert("RGB"), 16, (0.0,) * 3, (1.0,) * 3, antialias=flag) for flag in (True, False)
    }
    assert given[True][:, 4:-4].std() < 0.01
    assert given[True].mean() == pytest.approx(0.5, abs=0.02)
    assert not torch.allclose(given[True], given[False], atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1)])
def test_smallest_and_thinnest_pictures_are_prepared(size):
    assert letterboxed(Image.new("RGB", size), 32, MEAN, STD, antialias=True).isfinite().all()


def test_cosine_is_that_of_the_checkpoint_in_single_precision(reward, checkpoint):
    import open_clip

    model = open_clip.create_model("tiny-ViT-H-14").eval()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({key: value.float() for key, value in state.items()})
    texts = [TEXTS[index % len(TEXTS)] for index in range(5)]
    with torch.no_grad():
        looks = model.encode_image(torch.stack([authors_input(p, 32) for p in pictures()]), normalize=True)
        words = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(texts), normalize=True)
    wanted = (looks * words).sum(dim=-1).tolist()
    assert reward._body.cosines(texts, pictures()) == pytest.approx(wanted, abs=1e-4)
    assert np.std(wanted) > 0.01
    assert reward(prompts=texts, completions=pictures()) == pytest.approx([max(0, v) for v in wanted], abs=1e-4)


def test_reward_keeps_the_contract(reward):
    check_reward(reward, prompts=[TEXTS[index % len(TEXTS)] for index in range(6)], completions=[*pictures(), "text"])


def test_text_gets_none_and_an_unreadable_picture_the_least(reward):
    assert reward(prompts=["a", "a", ""], completions=["text", RefusedPicture("empty", ""), noise(0)]) == [None, 0, 0]


def test_scale_multiplies_and_must_be_above_zero(reward, checkpoint):
    percent = HpsV2(str(checkpoint), model="tiny-ViT-H-14", scale=100.0)
    assert percent._body is reward._body
    assert percent.range == (0.0, 100.0)
    ones = reward(prompts=TEXTS, completions=pictures()[:4])
    assert percent(prompts=TEXTS, completions=pictures()[:4]) == pytest.approx([100 * value for value in ones])
    with pytest.raises(ValueError, match="scale -1"):
        HpsV2(str(checkpoint), model="tiny-ViT-H-14", scale=-1)


def test_checkpoint_of_another_architecture_is_refused(checkpoint, tmp_path):
    architecture(tmp_path, "tiny-other", width=40)
    with pytest.raises(FileNotFoundError, match="did not load"):
        HpsV2(str(checkpoint), model="tiny-other")
