"""GenEval's rules against boxes worked out by hand, and a second, slower judge on every prompt of the benchmark."""

import json
import math

import numpy as np
import pytest

from unigrpo.rewards.vision.detection import Detection
from unigrpo.rewards.vision.geneval import (
    COLORS,
    RELATIONS,
    credits,
    kept,
    needed_colors,
    overlap,
    parse_wanted,
    relations,
)


def thing(label, score=0.95, box=(0, 0, 10, 10), color=None):
    return Detection(label=label, score=score, box=box, color=color)


def met(include, found, exclude=(), tag="x"):
    wanted = parse_wanted(include, exclude, tag)
    return credits(wanted, kept(found, threshold=0.9 if wanted.is_counting else 0.3))


def one(label, **more):
    return {"class": label, "count": 1, **more}


def test_single_object_is_there_or_not():
    assert met([one("dog")], [thing("dog"), thing("cat")]) == [1.0]
    assert met([one("dog")], [thing("cat")]) == [0.0]


def test_threshold_is_strict():
    assert met([one("dog")], [thing("dog", 0.3)]) == [0.0]
    assert met([one("dog")], [thing("dog", 0.3001)]) == [1.0]


def test_two_objects_need_both():
    assert met([one("dog"), one("cat")], [thing("dog"), thing("cat")]) == [1.0, 1.0]
    assert met([one("dog"), one("cat")], [thing("dog"), thing("dog")]) == [1.0, 0.0]


COUNT = {"include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}], "tag": "counting"}


@pytest.mark.parametrize(("number", "wanted"), [(0, [0, 0]), (2, [2 / 3, 0]), (3, [1, 1]), (4, [1, 0]), (9, [1, 0])])
def test_counting_wants_the_number_and_no_more(number, wanted):
    assert met(found=[thing("clock")] * number, **COUNT) == wanted


def test_counting_counts_only_above_nine_tenths():
    sure, doubtful = [thing("clock", 0.95)] * 3, [thing("clock", 0.9), thing("clock", 0.6)]
    assert met(found=sure + doubtful, **COUNT) == [1, 1]
    assert met(found=sure + doubtful, **(COUNT | {"tag": "two_object"})) == [1, 0]


def test_exclude_of_a_class_that_is_not_asked_for():
    exclude = [{"class": "cat", "count": 1}]
    assert met([one("dog")], [thing("dog")], exclude) == [1, 1]
    assert met([one("dog")], [thing("dog"), thing("cat")], exclude) == [1, 0]


def test_color_is_that_of_the_best_object():
    asked = [one("car", color="red")]
    assert met(asked, [thing("car", 0.9, color="red"), thing("car", 0.8, color="blue")]) == [1, 1]
    assert met(asked, [thing("car", 0.8, color="red"), thing("car", 0.9, color="blue")]) == [1, 0]


def test_color_of_several_counts_each():
    asked = [{"class": "car", "count": 2, "color": "red"}]
    assert met(asked, [thing("car", color="red"), thing("car", color="pink")]) == [1, 0.5]
    assert met(asked, [thing("car", color="red")]) == [0.5, 0]


def test_attribution_with_one_right_and_one_wrong_object():
    asked = [one("car", color="red"), one("dog", color="blue")]
    assert met(asked, [thing("car", color="red"), thing("dog", color="blue")]) == [1, 1, 1, 1]
    assert met(asked, [thing("car", color="red"), thing("dog", color="red")]) == [1, 1, 1, 0]
    assert met(asked, [thing("car", color="blue"), thing("dog", color="red")]) == [1, 0, 1, 0]


def test_equal_scores_keep_the_detectors_order():
    found = kept([thing("car", color="red"), thing("car", color="blue")], threshold=0.3)
    assert [car.color for car in found["car"]] == ["red", "blue"]


def test_at_most_sixteen_of_a_class():
    found = kept([thing("car", 0.4 + index / 100) for index in range(20)], threshold=0.3)["car"]
    assert [round(car.score, 2) for car in found] == [round(0.59 - index / 100, 2) for index in range(16)]


def test_only_colors_that_decide_are_asked_for():
    wanted = parse_wanted([one("car", color="red"), one("dog"), {"class": "cup", "count": 2, "color": "red"}], None, "")
    found = kept([thing("car"), thing("car"), thing("dog"), thing("cup")], threshold=0.3)
    assert needed_colors(wanted, found) == [("car", 0)]


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        ((-30, 0, -20, 10), {"left of"}),
        ((30, 0, 40, 10), {"right of"}),
        ((0, -30, 10, -20), {"above"}),
        ((0, 30, 10, 40), {"below"}),
        ((20, 20, 30, 30), {"right of", "below"}),  # 45 degrees: (20 - 2) / 28.28 = 0.636 on both axes
        ((0, 0, 10, 10), set()),
        ((2, 0, 12, 10), set()),  # offset 2 is the margin, 0.1 * (10 + 10)
        ((3, 0, 13, 10), set()),  # offset 3, 1 of it counts: a third of the distance
        ((4, 0, 14, 10), set()),  # 2 of 4: exactly half is not more than half
        ((4.01, 0, 14.01, 10), {"right of"}),
        ((10, 30, 20, 40), {"below"}),  # right: (10 - 2) / 31.6 = 0.25
        ((-400, -100, 400, 100), set()),  # a large box around the other: centre off by 5 and 5
    ],
)
def test_relation_of_boxes_to_one_at_the_origin(first, wanted):
    assert relations(first, (0, 0, 10, 10)) == wanted


def test_margin_grows_with_the_boxes():
    assert relations((10, 0, 20, 10), (0, 0, 10, 10)) == {"right of"}
    assert relations((10, 0, 110, 10), (-50, 0, 50, 10)) == {"right of"}  # 60 - 20 of 60
    assert relations((10, 0, 110, 10), (-10, 0, 90, 10)) == set()  # 20 - 20


PLACED = [one("bear"), one("dog", position=["right of", 0])]


def test_position_is_of_the_second_to_the_first():
    bear, dog = thing("bear", box=(0, 0, 10, 10)), thing("dog", box=(50, 0, 60, 10))
    assert met(PLACED, [bear, dog]) == [1, 1, 1]
    assert met(PLACED, [thing("bear", box=dog.box), thing("dog", box=bear.box)]) == [1, 1, 0]
    assert met(PLACED, [dog]) == [0, 1, 0]
    assert met(PLACED, [bear]) == [1, 0, 0]


def test_position_holds_for_every_pair_of_the_best():
    asked = [{"class": "bear", "count": 2}, one("dog", position=["right of", 0])]
    dog, near = thing("dog", box=(50, 0, 60, 10)), thing("bear", box=(0, 0, 10, 10))
    assert met(asked, [dog, near, thing("bear", box=(20, 0, 30, 10))]) == [1, 1, 1]
    assert met(asked, [dog, near, thing("bear", box=(90, 0, 99, 10))]) == [1, 1, 0]
    assert met(asked, [dog, near, near, thing("bear", 0.5, box=(90, 0, 99, 10))]) == [1, 1, 1]


def test_overlap_counts_the_far_edge_as_a_pixel():
    assert overlap((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 9, 9), (10, 0, 19, 9)) == 0


def test_weaker_of_two_overlapping_objects_may_be_dropped():
    twice = [thing("car", 0.9), thing("car", 0.8, (0, 0, 10, 11)), thing("car", 0.7, (40, 0, 50, 10))]
    assert [car.score for car in kept(twice, threshold=0.3, max_overlap=0.5)["car"]] == [0.9, 0.7]
    assert len(kept(twice, threshold=0.3)["car"]) == 3


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ([one("car", color="mauve")], "mauve.*red, orange"),
        ([{"class": "car", "count": 0}], "count of 1"),
        ([{"count": 1}], "a class"),
        ([one("car", position=["left of", 0])], "earlier clause"),
        ([one("car"), one("dog", position=["near", 0])], "one of left of"),
        ([], "neither include nor exclude"),
    ],
)
def test_clauses_that_cannot_be_judged_are_refused(include, message):
    with pytest.raises(ValueError, match=message):
        parse_wanted(include, None, None)


def slow_side(first, second):
    """The position rule by angles: which of four names hold, from the published definition."""
    (ax, ay), (bx, by) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (first, second))
    names = set()
    for name, sign, axis in (("left of", -1, 0), ("right of", 1, 0), ("above", -1, 1), ("below", 1, 1)):
        way = sign * ((ax, ay)[axis] - (bx, by)[axis])
        sizes = (first[2 + axis] - first[axis]) + (second[2 + axis] - second[axis])
        if way - 0.1 * sizes >= 1e-3 and (way - 0.1 * sizes) / math.dist((ax, ay), (bx, by)) > 0.5:
            names.add(name)
    return names


def slow_verdict(line, detections):
    """A second judge: clause after clause, stopping at the first that fails."""
    least = 0.9 if line["tag"] == "counting" else 0.3

    def ranked(name):
        those = [one for one in detections if one.label == name and one.score > least]
        return sorted(those, key=lambda one: one.score, reverse=True)[:16]

    taken = []
    for clause in line["include"]:
        best = ranked(clause["class"])[: clause["count"]]
        taken.append(best)
        if len(best) != clause["count"] or any(o.color != clause.get("color", o.color) for o in best):
            return False
        if "position" in clause:
            how, index = clause["position"]
            if not all(how in slow_side(mine.box, other.box) for mine in best for other in taken[index]):
                return False
    return not any(len(ranked(clause["class"])) >= clause["count"] for clause in line.get("exclude", []))


def random_found(line, rng):
    """Objects of the asked classes, mostly of the asked number and colours, with scores about the thresholds."""
    found = []
    for clause in line["include"]:
        low = 0.85 if line["tag"] == "counting" else 0.25
        for _ in range(clause["count"] + int(rng.choice([-1, 0, 0, 0, 1]))):
            x, y, w, h = rng.integers(1, 40, 4)
            name = clause.get("color") if rng.random() < 0.8 else str(rng.choice(COLORS))
            box = (float(x), float(y), float(x + w), float(y + h))
            found.append(thing(clause["class"], float(rng.uniform(low, 1)), box, name or "red"))
    return [found[index] for index in rng.permutation(len(found))]


def test_every_prompt_of_the_benchmark_agrees_with_the_slow_judge(test_data):
    lines = [json.loads(line) for line in (test_data / "geneval/evaluation_metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 553
    rng = np.random.default_rng(0)
    verdicts = {}
    for line in lines:
        wanted = parse_wanted(line["include"], line.get("exclude"), line["tag"])
        assert all(clause.relation in (None, *RELATIONS) for clause in wanted.include)
        for _ in range(8):
            found = random_found(line, rng)
            ours = credits(wanted, kept(found, threshold=0.9 if wanted.is_counting else 0.3))
            verdict = min(ours) == 1
            assert verdict == slow_verdict(line, found), (line, found)
            verdicts.setdefault(line["tag"], []).append(verdict)
    assert {tag: len(given) for tag, given in verdicts.items()} == {
        "single_object": 640,
        "two_object": 792,
        "counting": 640,
        "colors": 752,
        "position": 800,
        "color_attr": 800,
    }
    assert all(0.04 < np.mean(given) < 0.96 for given in verdicts.values()), "one-sided samples test little"
