"""The scene reward: what is read from pixels, and what each mistake costs."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from unigrpo.quickstart.scenes import ITEMS, ImagineScenes, Item, Scene, UnderstandScenes, random_scene, render
from unigrpo.rewards.scene import Scene as SceneReward
from unigrpo.rewards.scene import read_scene
from unigrpo.testing.conformance import check_reward

RED_CIRCLE, BLUE_SQUARE = Item(color="red", shape="circle"), Item(color="blue", shape="square")
ASKED = [["red", "circle"], ["blue", "square"]]


def truth(scene):
    return sorted((item.color, item.shape, *cell) for cell, item in scene.cells.items())


def score(cells, relation="left of", objects=ASKED):
    picture = render(Scene(cells=cells))
    reward = SceneReward(exact_weight=0.0)
    return reward(prompts=["-"], completions=[picture], objects=[objects], relation=[relation])[0]


@pytest.mark.parametrize("seed", range(30))
def test_reader_reads_what_was_drawn(seed):
    scene = random_scene(np.random.default_rng(seed), seed % 17)
    assert sorted(read_scene(render(scene))) == truth(scene)


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_reader_withstands_blur_noise_tint_and_jpeg_like_gray(item):
    scene = Scene(cells={(1, 2): item, (3, 0): item})
    rng = np.random.default_rng(0)
    blurred = np.asarray(render(scene).filter(ImageFilter.GaussianBlur(1.0)), dtype=float)
    spoilt = 0.85 * blurred + 20 + rng.normal(0, 8, blurred.shape)
    picture = Image.fromarray(np.clip(spoilt, 0, 255).astype(np.uint8))
    assert sorted(read_scene(picture)) == truth(scene)


def test_reader_takes_larger_pictures_and_palettes():
    scene = random_scene(np.random.default_rng(5), 6)
    assert sorted(read_scene(render(scene).resize((256, 256)))) == truth(scene)
    assert sorted(read_scene(render(scene).convert("RGBA"))) == truth(scene)


def test_nothing_is_read_from_blank_gray_or_noise():
    rng = np.random.default_rng(0)
    assert read_scene(Image.new("RGB", (64, 64), "white")) == []
    assert read_scene(Image.new("RGB", (64, 64), "black")) == []
    assert read_scene(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))) == []


def test_filled_cell_is_no_shape():
    assert read_scene(Image.new("RGB", (64, 64), "red")) == []


def test_what_was_asked_scores_one():
    assert score({(1, 0): RED_CIRCLE, (1, 3): BLUE_SQUARE}) == 1.0
    assert score({(3, 1): RED_CIRCLE, (0, 2): BLUE_SQUARE}) == 1.0


def test_every_demonstration_scores_one_without_noise_and_less_with():
    source, rng, reward = ImagineScenes("train", 0), np.random.default_rng(0), SceneReward(exact_weight=0.0)
    prompts = [source[index] for index in range(80)]
    columns = {name: [prompt.columns[name] for prompt in prompts] for name in ("objects", "relation")}
    for noise, is_right in ((0.0, True), (1.0, False)):
        pictures = [source.demonstration(prompt, rng, noise) for prompt in prompts]
        values = reward(prompts=[prompt.text for prompt in prompts], completions=pictures, **columns)
        assert all((value == 1.0) == is_right for value in values)
        assert all(value >= 0.5 for value in values)


@pytest.mark.parametrize(
    ("cells", "points"),
    [
        ({}, 0),
        ({(1, 0): RED_CIRCLE}, 2),
        ({(1, 0): BLUE_SQUARE}, 2),
        ({(1, 0): Item(color="red", shape="square"), (1, 3): BLUE_SQUARE}, 5),
        ({(1, 0): Item(color="green", shape="triangle"), (1, 3): BLUE_SQUARE}, 4),
        ({(1, 3): RED_CIRCLE, (1, 0): BLUE_SQUARE}, 4),
        ({(0, 1): RED_CIRCLE, (3, 1): BLUE_SQUARE}, 4),
        ({(1, 0): RED_CIRCLE, (1, 3): BLUE_SQUARE, (3, 3): BLUE_SQUARE}, 5),
        ({(row, column): RED_CIRCLE for row in range(4) for column in range(4)}, 0),
        ({(1, 0): Item(color="green", shape="triangle"), (1, 3): Item(color="yellow", shape="triangle")}, 2),
    ],
)
def test_points_of_six_worked_by_hand(cells, points):
    assert score(cells) == pytest.approx(points / 6)


def test_extra_object_never_raises_the_score():
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = random_scene(rng, int(rng.integers(2, 6)))
        cells = dict(scene.cells)
        free = next((row, column) for row in range(4) for column in range(4) if (row, column) not in cells)
        better = max(score({k: v for k, v in cells.items() if k != gone}) for gone in cells)
        assert score(cells | {free: RED_CIRCLE}) <= max(1.0, better)
        assert (score(cells) == 1.0) <= (len(cells) == 2)


def test_reward_keeps_the_contract():
    source, rng = ImagineScenes("train", 1), np.random.default_rng(0)
    prompts = [source[index] for index in range(12)]
    check_reward(
        SceneReward(exact_weight=0.0),
        prompts=[prompt.text for prompt in prompts],
        completions=[source.demonstration(prompt, rng, 0.5) for prompt in prompts],
        objects=[prompt.columns["objects"] for prompt in prompts],
        relation=[prompt.columns["relation"] for prompt in prompts],
    )


def test_text_and_prompts_that_ask_nothing_get_none():
    picture = UnderstandScenes("train", 0)[0].images[0]
    values = SceneReward(exact_weight=0.0)(
        prompts=["-", "-"], completions=["a red circle", picture], objects=[ASKED, None], relation=["above", None]
    )
    assert values == [None, None]


def test_broken_pictures_are_counted_among_those_that_were_asked_for():
    picture, broken, logged = render(Scene(cells={})), Image.new("F", (64, 64)), {}
    values = SceneReward()(
        prompts=["-"] * 4,
        completions=[picture, broken, broken, "text"],
        objects=[ASKED, ASKED, None, ASKED],
        relation=["above"] * 4,
        log_metric=logged.__setitem__,
    )
    assert values == [0.0, 0.0, None, None]
    assert logged == {"pictures/refused_fraction": 0.5, "pictures/refused_fraction/real_numbers": 0.5}


def test_data_without_its_columns_asks_nothing():
    assert SceneReward()(prompts=["-"], completions=[render(Scene(cells={}))]) == [None]


def test_unknown_relation_is_named():
    with pytest.raises(ValueError, match="'near' is not known; it is one of left of"):
        score({(1, 0): RED_CIRCLE, (1, 3): BLUE_SQUARE}, relation="near")


@pytest.mark.parametrize(("exact_weight", "wanted"), [(0.0, 5 / 6), (0.5, 5 / 12), (1.0, 0.0)])
def test_exact_weight_is_the_share_for_a_picture_without_any_mistake(exact_weight, wanted):
    right = render(Scene(cells={(1, 0): RED_CIRCLE, (1, 3): BLUE_SQUARE}))
    wrong = render(Scene(cells={(1, 0): Item(color="green", shape="circle"), (1, 3): BLUE_SQUARE}))
    values = SceneReward(exact_weight=exact_weight)(
        prompts=["", ""], completions=[right, wrong], objects=[ASKED, ASKED], relation=["left of", "left of"]
    )
    assert values == pytest.approx([1.0, wanted])


def test_a_share_outside_of_zero_and_one_is_refused():
    with pytest.raises(ValueError, match="exact_weight is 2"):
        SceneReward(exact_weight=2)
