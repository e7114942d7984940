import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.rewards.image_reward import ImageReward
from unigrpo.rewards.vision.blip import load_blip, pixels_of
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.testing.conformance import check_reward

GOLDEN = Path(__file__).parent / "golden" / "imagereward_tiny"
WANTED = json.loads((GOLDEN / "golden_tiny.json").read_text())
PAIRS = [(row, column) for row in range(5) for column in range(5)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(**arguments: object) -> ImageReward:
    settings: dict[str, object] = {"num_vision_heads": 4, "num_text_heads": 6, "low": -100.0, "high": 100.0}
    return ImageReward(str(GOLDEN / "ImageReward_tiny.pt"), str(GOLDEN / "tokenizer"), **(settings | arguments))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reward(cache: None) -> ImageReward:
    return tiny()


def pictures() -> list[Image.Image]:
    found = []
    for index in range(5):
        with Image.open(GOLDEN / "images" / f"{index}.png") as opened:
            found.append(opened.convert("RGB"))
    return found


def scores(reward: ImageReward) -> np.ndarray:
    shown = pictures()
    prompts = [WANTED["prompts"][row] for row, _ in PAIRS]
    values = reward(prompts=prompts, completions=[shown[column] for _, column in PAIRS])
    return np.array(values, dtype=np.float64).reshape(5, 5)


def test_scores_are_those_of_the_original_classes(reward: ImageReward) -> None:
    np.testing.assert_allclose(scores(reward), WANTED["scores"], rtol=0, atol=1e-4)


def test_tokens_and_masks_are_those_of_the_original_tokenizer(reward: ImageReward) -> None:
    tokens = reward._tokenizer(WANTED["prompts"], padding="max_length", truncation=True, max_length=35)
    assert tokens.input_ids == WANTED["input_ids"]
    assert tokens.attention_mask == WANTED["attention_mask"]


def test_the_two_tokens_of_blip_follow_the_vocabulary(reward: ImageReward) -> None:
    assert reward._tokenizer("[DEC] a [ENC]").input_ids == [6, 121, 9, 122, 7]


def test_pixels_are_those_of_the_original_preprocessing() -> None:
    pixels = pixels_of(pictures()[2], 224)
    probe = WANTED["probe_prompt0_image2"]
    assert pixels.shape == (3, 224, 224)
    assert float(pixels.sum()) == pytest.approx(probe["pixel_sum"], abs=0.05)
    assert float(np.abs(pixels).sum()) == pytest.approx(probe["pixel_abs_sum"], abs=0.05)


@pytest.mark.parametrize("num_text_heads", [8, 12])
def test_another_number_of_heads_would_have_been_noticed(cache: None, num_text_heads: int) -> None:
    assert np.abs(scores(tiny(num_text_heads=num_text_heads)) - np.array(WANTED["scores"])).max() > 1.0


def test_the_four_silent_defaults_each_move_a_score_by_more_than_the_tolerance(reward: ImageReward) -> None:
    """The golden would catch them; so it is known to be sharp enough."""
    wanted, blip = np.array(WANTED["scores"]), reward._blip
    layers = [module for module in blip.modules["vision"].modules() if isinstance(module, torch.nn.LayerNorm)]
    for layer in layers:
        layer.eps = 1e-5
    with_other_eps = scores(reward)
    for layer in layers:
        layer.eps = 1e-6
    assert np.abs(with_other_eps - wanted).max() > 1.5e-4

    text = blip.modules["text"]

    def changed(**changes: object) -> np.ndarray:
        def change(_: object, positional: object, keywords: dict[str, object]) -> tuple[object, dict[str, object]]:
            return positional, keywords | changes

        hook = text.register_forward_pre_hook(change, with_kwargs=True)
        moved = scores(reward)
        hook.remove()
        return moved

    assert np.abs(changed(is_decoder=True) - wanted).max() > 1.0
    assert np.abs(changed(attention_mask=torch.ones(25, 35, dtype=torch.long)) - wanted).max() > 1.0
    np.testing.assert_allclose(scores(reward), wanted, rtol=0, atol=1e-4)


def test_a_batch_is_its_items_to_the_last_bit(reward: ImageReward) -> None:
    shown = pictures()
    alone = [reward(prompts=[WANTED["prompts"][row]], completions=[shown[column]])[0] for row, column in PAIRS]
    assert alone == scores(reward).ravel().tolist()


def test_the_contract_is_kept_and_a_batch_is_its_items(cache: None) -> None:
    clipped = tiny(low=-3.0, high=3.0)
    shown = pictures()
    prompts = [WANTED["prompts"][row] for row, _ in PAIRS[:10]]
    values = check_reward(clipped, prompts=prompts, completions=[shown[column] for _, column in PAIRS[:10]])
    wanted = np.clip(np.array(WANTED["scores"]).ravel()[:10], -3, 3)
    np.testing.assert_allclose(np.array(values, dtype=np.float64), wanted, rtol=0, atol=1e-4)


def test_a_text_does_not_apply_and_clipping_is_logged(cache: None) -> None:
    logged: dict[str, float] = {}
    shown = pictures()
    long = WANTED["prompts"][3]
    values = tiny(low=-3.0, high=3.0)(
        prompts=["a cat", WANTED["prompts"][0], long],
        completions=["a text", shown[0], shown[0]],
        log_metric=lambda name, value: logged.update({name: value}),
    )
    assert values[0] is None
    assert values[1] == pytest.approx(WANTED["scores"][0][0], abs=1e-4)
    assert values[2] == -3.0
    assert logged.pop("pictures/refused_fraction") == 0.0
    assert logged == {"image_reward/clipped_fraction": 0.5, "image_reward/truncated_fraction": 0.5}


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20000, 8), (225, 224)])
def test_pictures_of_any_shape_become_a_square_in_bounded_memory(size: tuple[int, int]) -> None:
    assert pixels_of(Image.new("RGB", size, "red"), 224).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "I;16", "LA", "1"])
def test_other_modes_are_scored(reward: ImageReward, mode: str) -> None:
    (value,) = reward(prompts=["a dog"], completions=[Image.new(mode, (40, 30))])
    assert value is not None and np.isfinite(value)


def test_the_released_sizes_and_names_fit() -> None:
    shapes = json.loads((GOLDEN / "golden_full.json").read_text())["state_dict_keys"]
    assert len(shapes) == 625
    with torch.device("meta"):
        blip = load_blip(
            {name: torch.empty(shape) for name, shape in shapes.items()}, num_vision_heads=16, num_text_heads=12
        )
    assert blip.image_size == 224 and blip.modules["text"].config.hidden_size == 768
    used = sum(parameter.numel() for parameter in blip.modules.parameters())
    projections = 256 * (1024 + 768 + 2)
    assert used == 446_665_953 - projections


def test_a_checkpoint_that_is_not_imagerewards_is_refused(cache: None, tmp_path: Path) -> None:
    tensors = torch.load(GOLDEN / "ImageReward_tiny.pt", weights_only=True)
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    torch.save(tensors | {"blip.extra": torch.ones(1)}, tmp_path / "more.pt")
    torch.save({name: t for name, t in tensors.items() if "crossattention" not in name}, tmp_path / "less.pt")
    for name, said in (("other", "no tensor"), ("more", "extra"), ("less", "crossattention")):
        with pytest.raises(ValueError, match=f"(?s)not ImageReward's.*{said}"):
            ImageReward(str(tmp_path / f"{name}.pt"), str(GOLDEN / "tokenizer"), num_vision_heads=4, num_text_heads=6)


def test_missing_files_and_a_foreign_vocabulary_are_named(cache: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        ImageReward(str(tmp_path / "none.pt"), str(GOLDEN / "tokenizer"))
    checkpoint = str(GOLDEN / "ImageReward_tiny.pt")
    with pytest.raises(FileNotFoundError, match="no vocabulary"):
        ImageReward(checkpoint, str(tmp_path / "vocab.txt"), num_vision_heads=4, num_text_heads=6)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(ValueError, match="embeds 123"):
        ImageReward(checkpoint, str(tmp_path), num_vision_heads=4, num_text_heads=6)
    with pytest.raises(ValueError, match="num_text_heads 7 does not divide"):
        tiny(num_text_heads=7)
    with pytest.raises(ValueError, match="no range"):
        tiny(low=1.0, high=1.0)


def test_a_picture_that_cannot_be_read_gets_the_least_and_leaves_the_others_alone(reward: ImageReward) -> None:
    shown, prompts = pictures()[:2], WANTED["prompts"][:2]
    broken = RefusedPicture("unreadable", "cut short")
    values = reward(prompts=[prompts[0], prompts[0], prompts[1]], completions=[shown[0], broken, shown[1]])
    assert values[1] == reward.range[0]
    assert [values[0], values[2]] == pytest.approx(reward(prompts=prompts, completions=shown), abs=1e-5)
    assert reward(prompts=prompts[:1], completions=[broken]) == [reward.range[0]]
