"""The OCR reward with a reader of ours that matches the bitmaps of a font, and with the real package."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from unigrpo.plugin import PluginError
from unigrpo.rewards.ocr import Ocr, edit_distance, likeness
from unigrpo.rewards.vision.pictures import RefusedPicture
from unigrpo.rewards.vision.recognizer_rapidocr import _Piece, in_reading_order
from unigrpo.testing.conformance import check_reward

WIDE, HIGH = 6, 11
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!?.,'- "


@cache
def cell(character):
    """The bitmap of one character in its cell."""
    picture = Image.new("RGB", (WIDE, HIGH), "white")
    ImageDraw.Draw(picture).text((0, 0), character, fill="black", font=ImageFont.load_default_imagefont())
    return picture


@cache
def bitmaps():
    return {cell(character).tobytes(): character for character in CHARACTERS}


def typed(lines, size=(180, 66)):
    """Lines in PIL's fixed-width bitmap font, a character a cell."""
    picture = Image.new("RGB", size, "white")
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            picture.paste(cell(character), (column * WIDE, row * HIGH))
    return picture


class GridReader:
    """Reads what :func:`typed` wrote, cell by cell."""

    def __call__(self, pictures):
        return [self._lines(picture) for picture in pictures]

    def _lines(self, picture):
        lines = []
        for top in range(0, picture.height - HIGH + 1, HIGH):
            cells = [picture.crop((x, top, x + WIDE, top + HIGH)) for x in range(0, picture.width - WIDE + 1, WIDE)]
            lines.append("".join(bitmaps().get(cell.tobytes(), "") for cell in cells).strip())
        return [line for line in lines if line]


@pytest.fixture(scope="module")
def reward():
    return Ocr(recognizer="test_ocr:GridReader")


def score(reward, picture, text):
    return reward(prompts=["-"], completions=[picture], text=[text])[0]


def test_reader_reads_what_was_typed():
    assert GridReader()([typed(["Open 24 hours", "", "Closed!"])]) == [["Open 24 hours", "Closed!"]]


@pytest.mark.parametrize(
    ("lines", "text", "wanted"),
    [
        (["Hello World"], "Hello World", 1),
        (["HELLO", "world"], "Hello World", 1),
        ([], "Hello World", 0),
        (["Hello"], "Hello World", 1 / 2),
        (["Hallo World"], "Hello World", 9 / 10),
        (["Hello World!!"], "Hello World", 8 / 10),
        (["it's"], "it\u2019s", 1),
        (["xxxx"], "Hello World", 0),
    ],
)
def test_value_is_one_minus_edits_over_length(reward, lines, text, wanted):
    assert score(reward, typed(lines), text) == pytest.approx(wanted)


def test_picture_tiled_with_the_text_earns_nothing(reward):
    assert score(reward, typed(["STOP"]), "STOP") == 1
    assert score(reward, typed(["STOP STOP STOP"] * 3), "STOP") == 0
    assert score(reward, typed(["STOP STOP"]), "STOP") == 0
    assert score(reward, typed(["STOP it"]), "STOP") == 1 / 2


def test_case_and_spaces_count_where_set_so():
    strict = Ocr(recognizer=GridReader(), is_case_sensitive=True, counts_spaces=True)
    assert score(strict, typed(["ab cd"]), "ab cd") == 1
    assert score(strict, typed(["AB cd"]), "ab cd") == pytest.approx(3 / 5)
    assert score(strict, typed(["abcd"]), "ab cd") == pytest.approx(4 / 5)


def test_no_target_and_no_picture_get_none(reward):
    shown = typed(["A"])
    assert reward(prompts=["-"] * 4, completions=[shown, shown, shown, "A"], text=["A", None, "  ", "A"]) == [
        1.0,
        None,
        None,
        None,
    ]
    assert reward(prompts=["-"], completions=[shown]) == [None]


def test_broken_picture_gets_the_minimum(reward):
    metrics = {}
    values = reward(
        prompts=["-"] * 2,
        completions=[RefusedPicture("unreadable", "broken"), typed(["A"])],
        text=["A", "A"],
        log_metric=metrics.__setitem__,
    )
    assert values == [0.0, 1.0]
    assert metrics["pictures/refused_fraction"] == 0.5


def test_reward_keeps_the_contract(reward):
    lines = [["Hello"], ["Help"], [], ["Hello Hello"], ["yes"]]
    check_reward(reward, prompts=["-"] * 6, completions=[*map(typed, lines), "Hello"], text=["Hello"] * 5 + ["Hello"])


def slow_distance(first, second):
    if not first or not second:
        return len(first) + len(second)
    return min(
        slow_distance(first[1:], second) + 1,
        slow_distance(first, second[1:]) + 1,
        slow_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@given(st.text("abc", max_size=5), st.text("abc", min_size=1, max_size=5))
@settings(deadline=None, derandomize=True)
def test_distance_equals_its_recursive_definition(first, second):
    distance = slow_distance(first, second)
    assert edit_distance(first, second) == distance
    assert likeness(first, second) == 1 - min(distance, len(second)) / len(second)


def test_a_megabyte_of_read_text_costs_nothing():
    assert likeness("a" * 1_000_000, "a" * 1000) == 0


def test_wrong_recognizers_and_targets_are_refused(reward):
    with pytest.raises(PluginError, match="is a str"):
        Ocr(recognizer="test_ocr:CHARACTERS")
    with pytest.raises(ValueError, match="0 lists for 1 pictures"):
        score(Ocr(recognizer=lambda pictures: []), typed(["A"]), "A")
    with pytest.raises(ValueError, match="1001 characters; give at most 1000"):
        score(reward, typed(["A"]), "a" * 1001)


def test_pieces_are_read_line_by_line():
    def piece(text, left, top):
        return _Piece(text=text, left=left, top=top, bottom=top + 10)

    shuffled = [piece("d", 50, 33), piece("b", 60, 1), piece("c", 0, 30), piece("a", 0, 4)]
    assert in_reading_order(shuffled) == ["a b", "c d"]


def test_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("unigrpo.rewards.vision.recognizer_rapidocr.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"rapidocr and onnxruntime: pip install 'unigrpo\[ocr\]'"):
        Ocr()


def drawn(*lines, size=(320, 160)):
    picture = Image.new("RGB", size, (235, 225, 200))
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((20, 20 + 50 * row), line, fill=(20, 30, 90), font=ImageFont.load_default(32))
    return picture


def test_real_recognizer_reads_ordinary_type_without_network():
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    pytest.importorskip("onnxruntime", reason="the extra ocr is not installed")
    reward = Ocr()
    shown = [
        drawn("Hello World"),
        drawn("Fresh Bread", "Open Daily"),
        drawn("Hello Wurld"),
        drawn(*["Hello World"] * 3, size=(320, 200)),
        Image.new("RGB", (64, 64), "white"),
        Image.new("RGB", (1, 1)),
    ]
    text = ["Hello World", "Fresh Bread Open Daily", *["Hello World"] * 4]
    values = reward(prompts=["-"] * 6, completions=shown, text=text)
    assert values == [1, 1, pytest.approx(0.9), 0, 0, 0]
    assert reward(prompts=["-"] * 2, completions=shown[2::-2], text=text[2::-2]) == values[2::-2]
