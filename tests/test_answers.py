import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.rewards.text.answers import MAX_ANSWER_LENGTH, completion_text, cut_at_eos, extract_answer, gold_answer
from unigrpo.rewards.text.boxes import last_boxed


@pytest.mark.parametrize(
    ("completion", "answer", "source"),
    [
        (r"so \boxed{42}.", "42", "box"),
        (r"first \boxed{3}, no: \boxed{5}", "5", "box"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "box"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
        (r"\boxed {7}", "7", "box"),
        (r"\boxed 7", "7", "box"),
        (r"\fbox{7}", "7", "box"),
        ("boxed{27}", "27", "box"),
        ("The boxed value is 7", "The boxed value is 7", "text"),
        (r"<think>\boxed{1}</think> \boxed{2}", "2", "box"),
        (r"<think>a</think><think>\boxed{9}</think><answer>3</answer>", "3", "tag"),
        ("<answer>1</answer> or <answer> 9 </answer>", "9", "tag"),
        ("1+1 is 2\n#### 2\nbye", "2", "hashes"),
        ("<think>it is 9</think> It is 5.", "It is 5.", "text"),
        (r"\boxed{5}<|endoftext|>\boxed{6}", "5", "box"),
        (r"\boxed{5}<|eot_id|><|endoftext|>", "5", "box"),
        (r"\boxed{3. Once more: \boxed{5}", "5", "box"),
        (r"\boxed5", "5", "box"),
        (r"\fbox 7", "7", "box"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}", "box"),
        ("```\n\\boxed{5}\n```", "5", "box"),
        (r"\boxed{5}. I have boxed it", "5", "box"),
        (r"\boxed{3} or \boxed{5}", "3 or 5", "box"),
        (r"$x = \boxed{3}$, $y = \boxed{5}$", "3, 5", "box"),
        (r"\boxed{5}, \boxed{5}", "5", "box"),
        ("<think>a <answer>9</answer>", "9", "tag"),
    ],
)
def test_the_answer_of_a_completion(completion: str, answer: str, source: str) -> None:
    found = extract_answer(completion)
    assert found is not None
    assert (found.text, found.source) == (answer, source)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n ",
        r"\boxed{}",
        r"\boxed{12",
        r"It is \boxed{3}. Checking again: \boxed{5",
        r"\boxed{5} and an open \fbox{6",
        r"\boxed{5} and \boxed",
        r"\boxed{\boxed{5}",
        r"\boxed{\{1, 2\}",
        r"\boxed \frac{1}{",
        r"<answer>\boxed{5</answer>",
        "<answer>5</answer> or <answer>6",
        "<answer>9",
        "#### 5\n#### ",
        r"<think>\boxed{5} is what",
        r"\boxed",
        "<answer> </answer>",
        "<think>\\boxed{9}</think>",
        "x####",
        "\\boxed{" + "9" * (MAX_ANSWER_LENGTH + 1) + "}",
    ],
)
def test_no_answer_is_none(completion: str) -> None:
    assert extract_answer(completion) is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 150_000,
        "\\boxed{1} " * 100_000,
        "{" * 1_000_000,
        "<answer>" * 125_000,
        "</think>" * 125_000,
        "<|" * 500_000,
        "\\boxed{" * 70_000 + "5" + "}" * 70_000,
        "####" * 250_000,
    ],
)
def test_a_megabyte_takes_under_a_second(text: str) -> None:
    start = time.process_time()
    extract_answer(text)
    assert time.process_time() - start < 1.0


@settings(max_examples=100, deadline=None)
@given(
    before=st.sampled_from(["", r"First \boxed{5}. ", "<answer>5</answer> ", "#### 5\n", r"\boxed{5} or "]),
    box=st.sampled_from(
        [r"\boxed{5}", r"\fbox{\frac{10}{2}}", r"\boxed {\text{\{5\}}}", r"\boxed{\boxed{5}}", "boxed{ 5 }"]
    ),
    data=st.data(),
)
def test_a_box_that_is_cut_off_is_no_answer_whatever_stood_before(before: str, box: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(box.index("{") + 1, len(box) - 1))
    assert extract_answer(before + box) is not None
    assert extract_answer(before + box[:cut]) is None


def test_last_of_twenty_thousand_boxes_wins() -> None:
    assert last_boxed(r"\boxed{1} " * 20_000 + r"\boxed{5}") == "5"


def test_eos_is_cut_at_the_first_of_any_kind() -> None:
    assert cut_at_eos("a<|eot_id|>b<|endoftext|>") == "a"


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("x", "x"),
        ([{"role": "assistant", "content": "x"}], "x"),
        ({"role": "assistant", "content": "x"}, "x"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}], "xy"),
        (None, None),
        ([], None),
        (3, None),
    ],
)
def test_completions_are_text_or_conversations(completion: object, text: str | None) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("6 * 7 = <<6*7=42>>42\n#### 42", "42"),
        (r"Thus $x = \boxed{\frac12}$.", r"\frac12"),
        (18.0, "18"),
        (" red ", "red"),
        ("  ", None),
        (None, None),
    ],
)
def test_gold_answers(answer: object, gold: str | None) -> None:
    assert gold_answer(answer) == gold
