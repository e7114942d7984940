import re
import time
import warnings
from itertools import product
from typing import get_args

import pytest
from PIL import Image

from unigrpo.rewards.format import Format, FormatVariant
from unigrpo.testing.conformance import check_reward

TAG = {
    variant: "<reasoning>" if variant.startswith(("d1", "reason")) else "<think>" for variant in get_args(FormatVariant)
}
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


@pytest.mark.parametrize("variant", ["think_answer", "reasoning_answer"])
def test_two_sections_take_reasoning_of_several_lines(variant: str) -> None:
    tag = variant.removesuffix("_answer")
    good = f"<{tag}>\na\nb\n</{tag}>\n<answer>\n5\n</answer>\n"
    assert score(good, variant=variant) == 1.0
    assert score(good + "more", variant=variant) == 0.0
    assert score(good.replace("5", ""), variant=variant) == 0.0
    assert score(good.replace("</answer>", ""), variant=variant) == 0.0
    assert score(good.replace("\n<answer>", "x<answer>"), variant=variant) == 0.0


@pytest.mark.parametrize("variant", ["think_answer", "reasoning_answer"])
def test_two_sections_want_each_tag_once_and_in_order_among_all_arrangements(variant: str) -> None:
    tag = variant.removesuffix("_answer")
    tags = (f"<{tag}>x", f"</{tag}>", "<answer>x", "</answer>")
    arrangements = [parts for length in range(1, 7) for parts in product(tags, repeat=length)]
    texts = ["".join(parts) for parts in arrangements]
    values = Format(variant)(prompts=texts, completions=texts)  # type: ignore[arg-type]
    assert [parts for parts, value in zip(arrangements, values, strict=True) if value] == [tags]


@pytest.mark.parametrize(
    ("text", "value"),
    [("<think>a</think><answer>b</answer>", 1.0), ("<think>a</think>b", 0.5), ("a</think>", 0.25), ("a", 0.0)],
)
def test_tag_count_gives_a_quarter_a_tag(text: str, value: float) -> None:
    assert score(text, variant="tag_count") == value


def test_opening_tag_may_be_given_by_the_template() -> None:
    assert score("x</think> 5", is_open_given=True) == 1.0
    assert score("<think>x</think> 5", is_open_given=True) == 0.0


def test_empty_answer_may_be_allowed() -> None:
    assert score("<think>x</think>", needs_answer=False) == 1.0


def test_a_picture_does_not_apply() -> None:
    assert score(Image.new("RGB", (2, 2))) is None


def test_unknown_variant_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'xml' is unknown; give one of .*'think'"):
        Format("xml")  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", get_args(FormatVariant))
@pytest.mark.parametrize("piece", ["<think>", "</reasoning>", "\n</think>\n<answer>\n", " ", "<|mdm_mask"])
def test_a_megabyte_takes_under_half_a_second(variant: str, piece: str) -> None:
    text = TAG[variant] + piece * (1_000_000 // len(piece))
    start = time.process_time()
    score(text, variant=variant)
    assert time.process_time() - start < 0.5


def published(variant: str, text: str) -> float:
    """What the authors' own rule gives, by backtracking expressions."""
    expressions = {
        "open_r1": r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$",
        "d1_strict": r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$",
        "d1_soft": r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>",
    }
    flags = re.DOTALL | (re.MULTILINE if variant == "open_r1" else 0)
    if variant == "trl":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from trl.rewards import think_format_reward
        return float(think_format_reward([[{"content": text}]])[0])
    return float(re.match(expressions[variant], text, flags) is not None)


PIECES = ["<{}>", "\n", "</{}>", "<answer>", "\n5", "</answer>", " "]


@pytest.mark.parametrize("variant", ["trl", "open_r1", "d1_strict", "d1_soft"])
def test_published_rules_agree_with_their_expressions(variant: str) -> None:
    tag = TAG[variant][1:-1]
    reward = Format(variant)  # type: ignore[arg-type]
    good = f"<{tag}>\na\nb\n</{tag}>\n<answer>\n5\n</answer>\n"
    edits = [good[:cut] + piece.format(tag) + good[cut:] for cut in range(len(good) + 1) for piece in PIECES]
    gaps = [good[:start] + good[stop:] for start in range(len(good)) for stop in range(start, len(good) + 1)]
    short = ["".join(parts).format(*[tag] * 5) for parts in product(PIECES, repeat=5)]
    texts = [*edits, *gaps, *short]
    values = reward(prompts=texts, completions=texts)
    wrong = [text for text, value in zip(texts, values, strict=True) if value != published(variant, text)]
    assert wrong == []
    assert 0 < sum(value or 0 for value in values) < len(texts)


@pytest.mark.parametrize(
    ("text", "variant", "value"),
    [
        ("<think>\na\n</think>\n<answer>\n5\n</answer>", "open_r1_tag_count", 1.0),
        ("<think>a</think>\n<answer>\n5\n</answer>", "open_r1_tag_count", 0.5),
        ("<reasoning>\na\n</reasoning>\n<answer>\n5\n</answer>\n", "d1_xml_count", 1.0),
        ("<reasoning>\na\n</reasoning>\n<answer>\n5\n</answer>\n" + "x" * 50, "d1_xml_count", 0.8),
        ("<reasoning>\na\n</reasoning>\n<answer>\n5\n</answer>\n" + "x" * 5000, "d1_xml_count", 0.0),
        ("<think>a</think>", "mmada", 1.0),
        ("<think>a</think> 5", "mmada", 1.0),
        ("<think>a</think> <think>5</think>", "mmada", 0.0),
        ("a</think> 5", "mmada", 0.0),
    ],
)
def test_counting_variants_and_mmada(text: str, variant: str, value: float) -> None:
    assert score(text, variant=variant) == pytest.approx(value)


def d1_count(text: str) -> float:
    """d1's ``count_xml`` of four tag lines, character by character; an occurrence may not overlap the one before."""

    def ends(line: str) -> list[int]:
        found, place = [], 0
        while place < len(text):
            is_here = text[place : place + len(line)] == line
            place += len(line) if is_here else 1
            found += [place] if is_here else []
        return found

    def num_behind(line: str) -> int:
        return len(text) - ([0, *ends(line)][-1])

    count = 0.125 * sum(len(ends(line)) == 1 for line in ("<reasoning>\n", "\n</reasoning>\n"))
    if len(ends("\n<answer>\n")) == 1:
        count += 0.125 - 0.001 * num_behind("\n</answer>\n")
    if len(ends("\n</answer>")) == 1:
        count += 0.125 - 0.001 * (num_behind("\n</answer>") - 1)
    return count


def test_d1_xml_count_is_twice_d1s_own_count() -> None:
    head = "<reasoning>\na\n</reasoning>\n<answer>\n5"
    assert score(f"{head}\n</answer>\n</answer>\n", variant="d1_xml_count") == pytest.approx(0.73)
    lines = ["<reasoning>\n", "\n</reasoning>", "\n<answer>\n", "\n</answer>", "\n", "5 and more"]
    texts = ["".join(parts) for parts in product(lines, repeat=5)]
    texts += [head + "".join(parts) for parts in product(lines, repeat=3)]
    values = Format("d1_xml_count")(prompts=texts, completions=texts)
    assert values == pytest.approx([min(max(2 * d1_count(text), 0.0), 1.0) for text in texts])
    assert len(set(values)) > 50


@pytest.mark.parametrize("variant", get_args(FormatVariant))
def test_filler_does_not_count_and_masks_fail(variant: str) -> None:
    tag = TAG[variant][1:-1]
    good = f"<{tag}>\na\n</{tag}>\n<answer>\n5\n</answer>\n"
    assert score(good, variant=variant) == 1.0
    for marker in ("<|endoftext|>", "<|eot_id|>", "<pad>"):
        assert score(f"{good}{marker}<{tag}>x<|mdm_mask|>", variant=variant) == 1.0
    assert score(good.replace("5", "<|mdm_mask|>"), variant=variant) == 0.0
    assert score(good.removeprefix(f"<{tag}>"), variant=variant, is_open_given=True) == 1.0


@pytest.mark.parametrize("variant", get_args(FormatVariant))
def test_every_variant_keeps_the_contract(variant: str) -> None:
    texts = ["<think>x</think> 5", "5", "<reasoning>\n", "", "<think>\na\n</think>\n<answer>\n5\n</answer>"]
    check_reward(Format(variant), prompts=["?"] * 5, completions=texts)  # type: ignore[arg-type]
