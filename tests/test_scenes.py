"""The little world: what is drawn, what is asked, and that train and eval never meet."""

import sys
from subprocess import run

import numpy as np
import pytest

from unigrpo.quickstart.scenes import (
    BACKGROUND,
    COLORS,
    ITEMS,
    PLACE_WORDS,
    RELATIONS,
    SHAPES,
    ImagineScenes,
    Item,
    Scene,
    UnderstandScenes,
    caption,
    caption_scene,
    random_scene,
    render,
    scene_of_kinds,
)
from unigrpo.rewards.scene import Scene as SceneReward


def test_there_are_sixteen_kinds_of_cells():
    assert [item.kind for item in ITEMS] == list(range(1, 16))


def test_picture_is_64_by_64_rgb_on_white():
    picture = render(Scene(cells={}))
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert (np.asarray(picture) == BACKGROUND).all()


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_only_the_named_cell_is_painted_and_its_center_has_the_color(item):
    pixels = np.asarray(render(Scene(cells={(2, 3): item})))
    assert tuple(pixels[2 * 16 + 9, 3 * 16 + 8]) == COLORS[item.color]
    pixels = pixels.copy()
    pixels[32:48, 48:64] = 255
    assert (pixels == 255).all()


def test_shapes_cover_the_areas_of_circle_square_and_triangle():
    area = {}
    for shape in SHAPES:
        pixels = np.asarray(render(Scene(cells={(0, 0): Item(color="blue", shape=shape)})), dtype=float)
        area[shape] = ((255 - pixels[..., 0]) / (255 - COLORS["blue"][0])).sum()
    assert area["circle"] == pytest.approx(np.pi * 36, rel=0.03)
    assert area["square"] == pytest.approx(144, rel=0.03)
    assert area["triangle"] == pytest.approx(72, rel=0.03)


def test_relations_hold_in_the_layout():
    red, blue = Item(color="red", shape="circle"), Item(color="blue", shape="square")
    for relation in RELATIONS:
        where = {item: cell for cell, item in caption_scene(red, relation, blue).cells.items()}
        (row, column), (other_row, other_column) = where[red], where[blue]
        holds = {
            "left of": column < other_column,
            "right of": column > other_column,
            "above": row < other_row,
            "below": row > other_row,
        }
        assert [name for name in RELATIONS if holds[name]] == [relation]


def test_kinds_and_scene_are_inverse():
    scene = random_scene(np.random.default_rng(0), 7)
    assert len(scene.cells) == 7
    assert dict(scene_of_kinds(scene.kinds).cells) == dict(scene.cells)


def test_captions_of_train_validation_and_test_are_disjoint_and_make_840():
    train, test = ImagineScenes("train", 0), ImagineScenes("eval", 5)
    validation = ImagineScenes("eval", 5, held_out="validation")
    trained, tested, validated = ([source[index].text for index in range(840)] for source in (train, test, validation))
    assert len(set(trained)) + len(set(tested)) + len(set(validated)) == 840
    assert len({*trained, *tested, *validated}) == 840
    assert len(set(tested[:260])) == 260


def test_prompts_depend_on_split_seed_and_index_alone():
    for source in (ImagineScenes, UnderstandScenes):
        one, again, other = source("train", 1), source("train", 1), source("train", 2)
        assert [one[i].text for i in (9, 3, 5000)] == [again[i].text for i in (9, 3, 5000)]
        assert [one[i].text for i in range(50)] != [other[i].text for i in range(50)]
        assert [prompt.id for prompt, _ in zip(one, range(3), strict=False)] == [one[i].id for i in range(3)]


def test_imagine_columns_say_what_the_caption_says():
    prompt = ImagineScenes("train", 0)[11]
    first, second = (Item(color=color, shape=shape) for color, shape in prompt.columns["objects"])
    assert prompt.text == caption(first, prompt.columns["relation"], second)
    assert (prompt.kind, prompt.answer, prompt.images) == ("imagine", None, ())


def test_clean_demonstration_is_the_captions_picture_and_a_noisy_one_is_not():
    source, rng = ImagineScenes("train", 0), np.random.default_rng(0)
    for index in range(40):
        prompt = source[index]
        first, second = (Item(color=color, shape=shape) for color, shape in prompt.columns["objects"])
        target = np.asarray(render(caption_scene(first, prompt.columns["relation"], second)))
        assert (np.asarray(source.demonstration(prompt, rng, 0.0)) == target).all()
        assert (np.asarray(source.demonstration(prompt, rng, 1.0)) != target).any()


def test_noise_gets_two_parts_of_a_picture_wrong():
    source, rng = ImagineScenes("train", 0), np.random.default_rng(1)
    lost = []
    for index in range(200):
        prompt = source[index]
        asked = {"objects": [prompt.columns["objects"]], "relation": [prompt.columns["relation"]]}
        picture = source.demonstration(prompt, rng, 1.0)
        lost += [1 - value for value in SceneReward(exact_weight=0.0)(prompts=[""], completions=[picture], **asked)]
    assert min(lost) >= 1 / 6 - 1e-9
    assert 0.3 < np.mean(lost) < 0.5


def key(prompt):
    return prompt.text, prompt.images[0].tobytes()


def test_questions_of_train_validation_and_test_are_disjoint_and_the_first_256_differ():
    train, test = UnderstandScenes("train", 0), UnderstandScenes("eval", 0)
    validation = UnderstandScenes("eval", 0, held_out="validation")
    tested, validated = ({key(source[index]) for index in range(256)} for source in (test, validation))
    assert len(tested) == len(validated) == 256
    assert not tested & validated
    assert not (tested | validated) & {key(train[index]) for index in range(2000)}


def test_answers_are_true_of_the_picture():
    for index in range(60):
        prompt = UnderstandScenes("train", 4)[index]
        pixels, where = np.asarray(prompt.images[0]), {}
        for color, shape in prompt.columns["objects"]:
            rows, columns = np.nonzero((pixels == COLORS[color]).all(axis=-1))
            where[shape] = (rows.mean() // 16, columns.mean() // 16)
        objects = prompt.columns["objects"]
        words = prompt.text.rstrip("?").split()
        if words[1] == "color":
            expected = next(color for color, shape in objects if shape == words[-1])
        elif words[1] == "shape":
            expected = next(shape for color, shape in objects if color == words[-2])
        else:
            axis = 0 if "above" in words else 1
            assert where[words[2]][axis] != where[words[-1]][axis]
            expected = "yes" if where[words[2]][axis] < where[words[-1]][axis] else "no"
        assert prompt.answer == expected


def test_places_are_asked_with_as_many_yes_as_no():
    source = UnderstandScenes("train", 0, kinds=["place"])
    answers = [source[index].answer for index in range(1000)]
    assert 450 < answers.count("yes") < 550


def test_noise_changes_the_answer_only():
    source, rng = UnderstandScenes("train", 0), np.random.default_rng(0)
    vocabulary = {"color": set(COLORS), "shape": set(SHAPES), "place": set(PLACE_WORDS)}
    for index in range(30):
        prompt = source[index]
        clean, noisy = source.demonstration(prompt, rng, 0.0), source.demonstration(prompt, rng, 1.0)
        thought = ", ".join(" ".join(item) for item in prompt.columns["objects"])
        assert clean == f"<think>{thought}</think>{prompt.answer}"
        head, _, word = noisy.rpartition(">")
        assert head == clean.rpartition(">")[0]
        assert word != prompt.answer
        assert word in vocabulary[prompt.columns["kind"]]


def test_noise_is_a_probability():
    source, rng = UnderstandScenes("train", 0), np.random.default_rng(3)
    wrong = [not source.demonstration(source[i], rng, 0.3).endswith(f">{source[i].answer}") for i in range(500)]
    assert 0.23 < np.mean(wrong) < 0.37


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="held_out"):
        ImagineScenes("eval", 0, held_out="train")
    with pytest.raises(ValueError, match="'train' or 'eval'"):
        ImagineScenes("test", 0)
    with pytest.raises(ValueError, match="color, shape, place"):
        UnderstandScenes("train", 0, kinds=["size"])
    with pytest.raises(IndexError, match="starts at 0"):
        ImagineScenes("train", 0)[-1]


def test_importing_the_scenes_imports_no_torch():
    code = "import sys, unigrpo.quickstart.scenes; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
