"""The whole compositional reward on rendered scenes, and what it asks of detectors and readers of colours."""

import numpy as np
import pytest
from PIL import Image
from scene_detector import SceneDetector

from unigrpo.plugin import PluginError
from unigrpo.quickstart.scenes import Item, Scene, random_scene, render
from unigrpo.rewards.compositional import Compositional
from unigrpo.rewards.vision.detection import Detection
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.testing.conformance import check_reward

READER = "scene_detector:SceneDetector"


def item(words):
    color, shape = words.split()
    return Item(color=color, shape=shape)


def picture(**cells):
    """``r1c2="red circle"`` stands in row 1, column 2."""
    return render(Scene(cells={(int(place[1]), int(place[3])): item(words) for place, words in cells.items()}))


def score(reward, image, include, exclude=None, tag=None):
    return reward(prompts=["-"], completions=[image], include=[include], exclude=[exclude], tag=[tag])[0]


def one(label, **more):
    return {"class": label, "count": 1, **more}


RED_CIRCLE_BLUE_SQUARE = picture(r1c0="red circle", r1c3="blue square")


@pytest.mark.parametrize(
    ("include", "exclude", "tag", "strict", "soft"),
    [
        ([one("circle")], None, "single_object", 1, 1),
        ([one("triangle")], None, "single_object", 0, 0),
        ([one("circle"), one("square")], None, "two_object", 1, 1),
        ([one("circle"), one("triangle")], None, "two_object", 0, 1 / 2),
        ([one("circle")], [{"class": "circle", "count": 2}], "counting", 1, 1),
        ([{"class": "circle", "count": 2}], [{"class": "circle", "count": 3}], "counting", 0, 1 / 4),
        ([one("circle", color="red")], None, "colors", 1, 1),
        ([one("circle", color="blue")], None, "colors", 0, 1 / 2),
        ([one("circle"), one("square", position=["right of", 0])], None, "position", 1, 1),
        ([one("circle"), one("square", position=["left of", 0])], None, "position", 0, 2 / 3),
        ([one("circle", color="red"), one("square", color="blue")], None, "color_attr", 1, 1),
        ([one("circle", color="red"), one("square", color="red")], None, "color_attr", 0, 3 / 4),
        ([one("circle", color="blue"), one("square", color="red")], None, "color_attr", 0, 1 / 2),
    ],
)
def test_six_checks_read_from_pixels(include, exclude, tag, strict, soft):
    for mode, wanted in (("strict", strict), ("soft", soft)):
        reward = Compositional(mode=mode, detector=READER)
        assert score(reward, RED_CIRCLE_BLUE_SQUARE, include, exclude, tag) == pytest.approx(wanted)


def test_blank_picture_earns_nothing_from_what_it_lacks():
    blank = Image.new("RGB", (64, 64), "white")
    reward = Compositional(mode="soft", detector=READER)
    assert score(reward, blank, [one("circle")], [{"class": "circle", "count": 2}], "counting") == 0


def test_positions_read_from_pixels_are_those_drawn():
    reward, asked = Compositional(detector=READER), {"left of": -1, "right of": 1}
    for left in range(4):
        for right in set(range(4)) - {left}:
            shown = picture(**{f"r2c{left}": "red circle", f"r2c{right}": "green square"})
            for relation, sign in asked.items():
                include = [one("square"), one("circle", position=[relation, 0])]
                assert score(reward, shown, include) == (sign * (left - right) > 0)


def test_boxes_of_the_pixel_reader_lie_around_the_shapes_at_any_size():
    scene = Scene(cells={(1, 2): item("red square")})
    detected = SceneDetector()([render(scene), render(scene).resize((128, 256))], [["square"]] * 2)
    assert [found[0].box for found in detected] == [(34, 18, 46, 30), (68, 72, 92, 120)]
    reds = np.argwhere(np.asarray(render(scene))[..., 2] < 128)
    assert (*reds.min(axis=0)[::-1], *(reds.max(axis=0)[::-1] + 1)) == detected[0][0].box


def test_counts_of_random_scenes_are_those_drawn():
    rng = np.random.default_rng(3)
    reward = Compositional(detector=READER)
    for _ in range(20):
        scene = random_scene(rng, 6)
        number = sum(item.shape == "circle" for item in scene.cells.values())
        for asked in range(1, 7):
            include, exclude = [{"class": "circle", "count": asked}], [{"class": "circle", "count": asked + 1}]
            assert score(reward, render(scene), include, exclude, "counting") == (asked == number)


def test_reward_keeps_the_contract():
    rng = np.random.default_rng(0)
    shown = [render(random_scene(rng, number)) for number in range(6)]
    include = [[one("circle", color="red"), one("square", position=["below", 0])]] * 7
    for mode in ("strict", "soft"):
        values = check_reward(
            Compositional(mode=mode, detector=READER),
            prompts=["-"] * 7,
            completions=[*shown, "text"],
            include=include,
            exclude=[None] * 7,
            tag=["position"] * 7,
        )
        assert values[-1] is None and values[0] == 0


def test_prompts_without_clauses_and_missing_columns_get_none():
    reward = Compositional(detector=READER)
    assert reward(prompts=["-"], completions=[RED_CIRCLE_BLUE_SQUARE]) == [None]
    assert score(reward, RED_CIRCLE_BLUE_SQUARE, None) is None
    assert score(reward, RED_CIRCLE_BLUE_SQUARE, [one("circle")]) == 1


class OneThing:
    """Returns one and the same object for every picture, and notes what it was asked for."""

    def __init__(self, score=0.5):
        self.found = Detection(label="car", score=score, box=(0, 0, 8, 8))
        self.labels = []

    def __call__(self, pictures, labels):
        self.labels += labels
        return [[self.found]] * len(pictures)


class ColorOfTheCorner:
    """Reads the corner pixel, and counts how often it is asked."""

    def __init__(self):
        self.num_asked = 0

    def __call__(self, found):
        self.num_asked += len(found)
        return ["red" if picture.getpixel((0, 0)) == (255, 0, 0) else "blue" for picture, _ in found]


def test_detector_is_told_the_classes_and_colors_are_read_only_where_asked():
    detector, colors = OneThing(), ColorOfTheCorner()
    reward = Compositional(detector=detector, colors=colors)
    values = reward(
        prompts=["-"] * 3,
        completions=[Image.new("RGB", (8, 8), name) for name in ("red", "blue", "red")],
        include=[[one("car", color="red")], [one("car", color="red")], [one("car"), one("dog", color="red")]],
    )
    assert values == [1.0, 0.0, 0.0]
    assert detector.labels == [("car",), ("car",), ("car", "dog")]
    assert colors.num_asked == 2


def test_thresholds_are_settings():
    asked = [one("car")]
    blank = Image.new("RGB", (8, 8))
    assert score(Compositional(detector=OneThing(0.5)), blank, asked) == 1
    assert score(Compositional(detector=OneThing(0.5), threshold=0.5), blank, asked) == 0
    assert score(Compositional(detector=OneThing(0.5)), blank, asked, tag="counting") == 0
    assert score(Compositional(detector=OneThing(0.5), counting_threshold=0.4), blank, asked, tag="counting") == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"mode": "fuzzy"}, "strict .* soft"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"max_objects": 0}, "max_objects 0"),
        ({"detector": "unigrpo.rewards.vision.geneval:COLORS"}, "tuple"),
    ],
)
def test_wrong_settings_are_refused(bad, message):
    with pytest.raises((ValueError, PluginError), match=message):
        Compositional(**({"detector": READER} | bad))


def test_broken_picture_gets_the_minimum_and_touches_no_other():
    metrics = {}
    values = Compositional(detector=READER)(
        prompts=["-"] * 2,
        completions=[RefusedPicture("unreadable", "broken"), RED_CIRCLE_BLUE_SQUARE],
        include=[[one("circle")]] * 2,
        log_metric=metrics.__setitem__,
    )
    assert values == [0.0, 1.0]
    assert metrics["pictures/refused_fraction"] == 0.5


def test_detector_that_loses_a_picture_is_named():
    with pytest.raises(ValueError, match="0 lists for 1 pictures"):
        score(Compositional(detector=lambda pictures, labels: []), RED_CIRCLE_BLUE_SQUARE, [one("circle")])
