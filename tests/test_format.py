import time

import pytest
from PIL import Image

from unigrpo.rewards.format import Format

GOOD = "<think>\none\ntwo\n</think>\nIt is 5."


def score(text: object, **settings: object) -> float | None:
    return Format(**settings)(prompts=["?"], completions=[text], answer=["5"])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        (GOOD + "<|endoftext|></think><|mdm_mask|>", 1.0),
        ([{"role": "assistant", "content": GOOD}], 1.0),
        ("<think>x</think>", 0.0),
        ("<think>x</think> \n<|endoftext|>", 0.0),
        ("<think>x<think>y</think> 5", 0.0),
        ("<think>x</think>y</think> 5", 0.0),
        ("</think>x<think> 5", 0.0),
        ("so <think>x</think> 5", 0.0),
        ("5", 0.0),
        ("", 0.0),
        ("<think>x</think> 5 <|mdm_mask|>", 0.0),
    ],
)
def test_think_wants_one_pair_in_order_and_an_answer(text: object, value: float) -> None:
    assert score(text) == value


@pytest.mark.parametrize("style", ["think_answer", "reasoning_answer"])
def test_two_sections_take_reasoning_of_several_lines(style: str) -> None:
    tag = style.removesuffix("_answer")
    good = f"<{tag}>\na\nb\n</{tag}>\n<answer>\n5\n</answer>\n"
    assert score(good, style=style) == 1.0
    assert score(good + "more", style=style) == 0.0
    assert score(good.replace("5", ""), style=style) == 0.0
    assert score(good.replace("</answer>", ""), style=style) == 0.0
    assert score(good.replace("\n<answer>", "x<answer>"), style=style) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [("<think>a</think><answer>b</answer>", 1.0), ("<think>a</think>b", 0.5), ("a</think>", 0.25), ("a", 0.0)],
)
def test_tag_count_gives_a_quarter_a_tag(text: str, value: float) -> None:
    assert score(text, style="tag_count") == value


def test_opening_tag_may_be_given_by_the_template() -> None:
    assert score("x</think> 5", is_open_given=True) == 1.0
    assert score("<think>x</think> 5", is_open_given=True) == 0.0


def test_empty_answer_may_be_allowed() -> None:
    assert score("<think>x</think>", needs_answer=False) == 1.0


def test_a_picture_does_not_apply() -> None:
    assert score(Image.new("RGB", (2, 2))) is None


def test_unknown_style_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'xml' is unknown; give one of .*'think'"):
        Format("xml")  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["think", "think_answer", "reasoning_answer", "tag_count"])
@pytest.mark.parametrize("piece", ["<think>", "</think>", "<answer>", "<", "<|mdm_mask"])
def test_a_megabyte_takes_under_half_a_second(style: str, piece: str) -> None:
    text = "<think>" + piece * (1_000_000 // len(piece))
    start = time.process_time()
    score(text, style=style)
    assert time.process_time() - start < 0.5
