r"""From a JSONL file to the verdict: what an answer must say to be paid, by kinds, each with its right value."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.data.sources import load_prompts
from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.maths.verdict import judge_cheaply
from unigrpo.settings.tasks import DataSettings

RIGHT, WRONG = 1.0, 0.0

HEDGED_OR_DENIED = [
    *[("The answer is 3 or 5.", gold) for gold in ("3", "5")],
    *[("3, maybe 5", gold) for gold in ("3", "5")],
    *[
        (text, "5")
        for text in (
            "The answer is between 3 and 5.",
            "The answer is from 3 to 5.",
            "The answer is 3, 4, or 5.",
            "The answer is 3 and 5.",
            "The answer is at least 5.",
            "either 3 or 5",
            "It is 3 or it is 5.",
            "The answer is $3$ or $5$.",
            "The answer is 5 (or 6).",
            "The answer is 3. Or 5.",
            "The answer is 3. It could also be 5.",
            "x ∈ {3, 5}",
            "3\u20135",
            "It is not 5.",
            "It isn\u2019t 5.",
            "Not 5.",
            "The answer is no longer 5",
            "Actually, no: it cannot be 5",
            "It doesn't equal 5.",
            r"x \neq 5",
            "5 is not the answer.",
            "I would not say 5.",
            "neither 3 nor 5",
            "anything but 5",
            "5? No, 4",
            "Is it 5?",
            "The answer is 5? I am not sure.",
            "Maybe 5.",
            "It could be 5.",
            "The answer is 4, not 5.",
            "The answer is 5. Wait, it is 6.",
            "The answer is 5. That is wrong.",
            "The answer is not 5 but 4.",
            r"\boxed{3 or 5}",
            r"\boxed{3 \text{ or } 5}",
            r"\boxed{\text{either 3 or 5}}",
            r"\boxed{between 3 and 5}",
            r"\boxed{not 5}",
            r"\boxed{maybe 5}",
            r"\boxed{5?}",
            r"\boxed{3} or \boxed{5}",
            r"x = \boxed{3}, x = \boxed{5}",
            "<answer>3 or 5</answer>",
            "#### not 5",
            "The answer is 5. No wait, it's 6.",
            "The answer is 5. Scratch that.",
            "The answer is 5. I made a mistake.",
            "The answer is 5. I take that back.",
            "The answer is 5. Never mind.",
            "The answer is 5, no, 6.",
            "The answer is 5 (alternatively 6).",
            "It is not the case that x = 5.",
            "Suppose the answer is 5. Then there is a contradiction.",
            "Let's try x = 5.",
            "Let us check whether it is 5.",
            "If the answer is 5, we are done.",
            "The answer is twice 5.",
            "The answer is the square root of 5.",
            "The answer is 5 less than 10.",
            "The answer is 5 squared.",
            "The remainder when 17 is divided by 5",
        )
    ],
    ("1. Add 2 and 4.\n2. Double it.", "2"),
    (r"The answer is $\sqrt{2}$ or $\sqrt{3}$", r"\sqrt{3}"),
    (r"The answer is not $\sqrt{3}$", r"\sqrt{3}"),
    ("The answer is B or C.", "C"),
    ("The answer is not B.", "B"),
    ("A, B", "B"),
    ("It is red or blue.", "red"),
    ("The answer is not red.", "red"),
]
CLAIMED = [
    *[
        (text, "5")
        for text in (
            "5",
            "It is 5.",
            "So x = 5.",
            "**The answer is 5.**",
            "Answer: 5",
            "I think the answer is 5.",
            "The answer is 5, not 4.",
            "The answer is not 4 but 5.",
            "It isn't 4, it's 5.",
            "4? No, 5.",
            "The answer is 4. No. It is 5.",
            "The number of ways that do not include A is 5.",
            "Therefore, there are 5 apples.",
            "The total is $5.",
            "<answer>The answer is 5.</answer>",
            "**5**",
            "#### *5*",
            "#### **5**",
            "Therefore, Janet makes $5 every day at the market.",
            "She makes 2 + 3 = $<<2+3=5>>5 every day.",
            "If she sells 9 eggs at $2 each, she makes 5 dollars.",
            "The answer is 5, which may be checked by substitution.",
            "Let x be the number of eggs, so x = 5.",
            "1. There are 2 cats.\n2. There are 3 dogs.\n3. The total is 5.",
        )
    ],
    ("The probability equals 7/12.", "7/12"),
    (r"The probability is equal to $\frac{7}{12}$.", "7/12"),
    ("The probability of drawing 2 or 3 is 7/12.", "7/12"),
    ("= 7/12", "7/12"),
    ("The answer is 1/2, or 50%.", "1/2"),
    (r"The answer is \frac{\sqrt{3}}{3}.", r"\frac{1}{\sqrt{3}}"),
    ("The answer is\n\\[\n\\frac{\\sqrt{3}}{3}.\n\\]", r"\frac{1}{\sqrt{3}}"),
    ("The color is red.", "red"),
    ("The answer is B, not C.", "B"),
]
CUT_OFF = [
    (r"It is \boxed{3}. Checking again: \boxed{5", "3"),
    (r"The answer is \frac{1}{", "1"),
    (r"The answer is $\frac{1}{2}", "1/2"),
    (r"The answer is \frac{1}", "1"),
    ("The answer is 5 +", "5"),
    ("1. Count the cats.\n2. Count the dogs.\n3.", "3"),
    ("We count the cats.\nStep 2:", "2"),
    ("**The answer is 5 *", "5"),
    ("So it costs $5 + x", "5"),
    (r"#### \frac{1}{2", "1"),
    ("<answer>5", "5"),
    (r"<think>It is \boxed{5}.", "5"),
]
ALL_PARTS = [
    ("The answers are 1331 and 1728.", "1331 and 1728"),
    ("The answers are 1331 and 1728.", "1728, 1331"),
    ("3 and 5 are the answers.", "3, 5"),
    ("The answer is 3 or 5.", "x=3 or x=5"),
    ("The solutions are ±2.", "-2, 2"),
    (r"\boxed{x = \pm 2}", "x=2 or x=-2"),
    (r"\boxed{8 \text{ and } 9}", r"\{9, 8\}"),
    ("The solutions are $x = -1$ and $x = 1$.", "-1, 1"),
    (r"The solutions are \(x = -1\) and \(x = 1\).", r"\pm 1"),
    (r"\boxed{1,234 and 5}", "1234, 5"),
    (r"\boxed{9 chickens and 10 rabbits}", "9, 10"),
    (r"\boxed{9 \text{ chickens and } 10 \text{ rabbits}}", "9 and 10"),
    (r"\boxed{10 rabbits and 9 chickens}", "9 chickens, 10 rabbits"),
    ("There are 9 chickens and 10 rabbits.", "9 chickens and 10 rabbits"),
    (r"$x = \boxed{3}$ and $y = \boxed{5}$", "3, 5"),
    (r"The first is \boxed{3}. The second is \boxed{5}.", "3, 5"),
    (r"\boxed{y=2, x=1}", "x=1, y=2"),
    (r"\boxed{\text{cd}, \text{ab}}", r"\text{ab}, \text{cd}"),
]
OTHER_PARTS = [
    ("The answers are 1331 and 1728.", "1331"),
    ("The answers are 1331 and 1729.", "1331, 1728"),
    ("The solutions are ±2.", "2"),
    (r"\boxed{2}", r"\pm 2"),
    (r"\boxed{8, 9, 10}", "8, 9"),
    (r"\boxed{10 chickens and 9 rabbits}", "9 chickens, 10 rabbits"),
    (r"\boxed{10, 9}", "9 chickens, 10 rabbits"),
    (r"\boxed{x=2, y=1}", "x=1, y=2"),
    (r"First \boxed{3}, wait, \boxed{5}", "3, 5"),
    (r"\boxed{1} \boxed{2} \boxed{3} \boxed{5}", "3, 5"),
]
ONE_NUMBER = [
    (r"\boxed{0.0833333333333333}", r"\frac{1}{12}"),
    (r"\boxed{1.41421356}", r"\sqrt{2}"),
    (r"\boxed{3.141593}", r"\pi"),
    (r"\boxed{8.33333333\%}", "1/12"),
    (r"\boxed{0.30000000000000004}", "0.3"),
    (r"\boxed{1.41421356, 1}", r"1, \sqrt{2}"),
    (r"\boxed{[0.33333333, 1]}", r"[\frac13, 1]"),
    (r"\boxed{1.41421356 + 2i}", r"\sqrt{2} + 2i"),
    (r"\boxed{\begin{pmatrix} 0.3333333333 \\ 0.2 \end{pmatrix}}", r"\begin{pmatrix} \frac13 \\ \frac15 \end{pmatrix}"),
    (r"\boxed{1, 2, ..., 10}", r"1,2,\ldots,10"),
]
TWO_NUMBERS = [
    (r"\boxed{5\text{ squared}}", "5"),
    (r"\boxed{5\text{ factorial}}", "5"),
    (r"\boxed{2\text{ cubed}}", "2"),
    (r"\boxed{1/2004!}", "1/2006!"),
    (r"\boxed{1/2^{99}}", "1/2^{98}"),
    (r"\boxed{\frac{2^{2005}+1}{3\cdot 2^{2006}}}", r"\frac{1}{3\cdot 2^{2006}}"),
    (r"\boxed{0.333}", "1/3"),
    (r"\boxed{3.14}", r"\pi"),
    (r"\boxed{2.0000001}", "2"),
    (r"\boxed{1e-30}", "2e-30"),
    (r"\boxed{0}", "1e-12"),
    (r"\boxed{123456789.13}", "123456789.12"),
    (r"\boxed{100000000000000000001}", "100000000000000000000"),
    (r"\boxed{\sqrt{2}\times 10^{-10}}", r"\sqrt{3}\times 10^{-10}"),
    (r"\boxed{[10^{-9}, 1]}", r"[2\cdot 10^{-9}, 1]"),
    (r"\boxed{\begin{pmatrix} 10^{-9} \\ 1 \end{pmatrix}}", r"\begin{pmatrix} 2\cdot 10^{-9} \\ 1 \end{pmatrix}"),
    (r"\boxed{1, 2, \ldots, 10}", r"1, 2, \ldots, 9"),
    (r"\boxed{10}", r"1, 2, \ldots, 10"),
    (r"\boxed{5 2}", "52"),
    (r"\boxed{52_8}", "52_7"),
    (r"\boxed{5 \text{ million}}", "5"),
    ("The answer is 5 thousand dollars.", "5"),
    ("The answer is negative 5.", "5"),
    ("#### 5 hundred", "5"),
    ("The answer is ~~5~~ 6.", "5"),
    ("~~5~~", "5"),
]
ANOTHER_DRESS = [
    *[
        (rf"\boxed{{{dress}}}", "73")
        for dress in (
            "**73**",
            "__73__",
            "*73*",
            "`73`",
            r"\textbf{73}",
            r"\mathbf{73}",
            r"\text{\textbf{73}}",
            "73.",
            r"\!73\,",
            "$73$",
            "**$73$**",
            "\uff17\uff13",
            "73\u2009",
            r"\$73",
            "73 €",
            "= 73",
            r"73^\circ",
            "73 apples",
        )
    ],
    (r"\boxed{2.5\times10^{3}\ \text{J}}", "2500"),
    ("\\boxed{2.5\u00d710\u00b3 J}", "2500"),
    (r"\boxed{2.5e3}", "2500"),
    (r"\boxed{\mathbf{\dfrac{1}{2}}}", "1/2"),
    (r"\boxed{2\dfrac{1}{3}}", "7/3"),
    ("\\boxed{\u22125}", "-5"),
    (r"\boxed{1\,234\,567}", "1234567"),
    (r"\boxed{35 percent}", r"35\%"),
    (r"\boxed{90 degrees}", r"90^\circ"),
    (r"\boxed{12 square meters}", "12 m^2"),
    (r"\boxed{60 mph}", "60 miles per hour"),
    (r"\boxed{AB = 5 cm}", "5"),
    ("The answer is **73**.", "73"),
    (r"\boxed{\textcolor{red}{73}}", "73"),
    (r"\boxed{\color{blue}73}", "73"),
    (r"\boxed{\large{73}}", "73"),
    (r"\boxed{\text{Answer: } 73}", "73"),
    ("#### Answer: 73", "73"),
    ("The answer is ~~72~~ 73.", "73"),
    ("It is 2.5 million dollars.", "2500000"),
    (r"\boxed{\text{negative } 5}", "-5"),
    ("The answer is minus 5.", "-5"),
    (r"\boxed{\textbf{(C)}\ 5}", "C"),
    (r"\boxed{C) 5}", "C"),
    (r"\boxed{1 000 000}", "1000000"),
]
ANOTHER_UNIT = [
    (r"\boxed{5 m/s}", "5 km/h"),
    (r"\boxed{12 square meters}", r"12\text{ cm}^2"),
    (r"\boxed{€5}", r"\$5"),
    (r"\boxed{5 pm}", "5 am"),
]
SAME_WORDS = [
    (r"\boxed{\text{Evelyn}}", "Evelyn"),
    (r"\boxed{\text{ evelyn }}", r"\text{Evelyn}"),
    (r"\boxed{\text{New   York.}}", "new york"),
    (r"\boxed{\text{(A)}}", "A"),
    (r"\boxed{A}", r"\text{(A)}"),
    (r"\boxed{ab}", "ba"),
    (r"\boxed{not possible}", "not possible"),
]
OTHER_WORDS = [
    (r"\boxed{\text{ab}}", r"\text{ba}"),
    (r"\boxed{\text{ab}}", "ba"),
    (r"\boxed{ba}", r"\text{ab}"),
    (r"\boxed{\text{ab}, \text{cd}}", r"\text{ba}, \text{dc}"),
    (r"\boxed{\text{no}}", r"\text{on}"),
    (r"\boxed{\textbf{(C)}\ 5}", "D"),
    (r"\boxed{(C) or (D)}", "C"),
    (r"\boxed{(C) (D)}", "C"),
    (r"\boxed{C. D}", "C"),
    (r"\boxed{\mathrm{HCl}}", r"\mathrm{ClH}"),
    (r"\boxed{evne}", "even"),
]


@pytest.fixture(scope="module")
def reward() -> Iterator[Correctness]:
    reward = Correctness()
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param(HEDGED_OR_DENIED, WRONG, id="hedged or denied"),
        pytest.param(CLAIMED, RIGHT, id="claimed"),
        pytest.param(CUT_OFF, WRONG, id="cut off"),
        pytest.param(ALL_PARTS, RIGHT, id="all parts"),
        pytest.param(OTHER_PARTS, WRONG, id="other parts"),
        pytest.param(ONE_NUMBER, RIGHT, id="one number"),
        pytest.param(TWO_NUMBERS, WRONG, id="two numbers"),
        pytest.param(ANOTHER_DRESS, RIGHT, id="another dress"),
        pytest.param(ANOTHER_UNIT, WRONG, id="another unit"),
        pytest.param(SAME_WORDS, RIGHT, id="same words"),
        pytest.param(OTHER_WORDS, WRONG, id="other words"),
    ],
)
def test_answers_of_a_kind_have_one_verdict(
    reward: Correctness, tmp_path: Path, pairs: list[tuple[str, str]], expected: float
) -> None:
    lines = [json.dumps({"prompt": "?", "said": text, "answer": gold}) for text, gold in pairs]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = load_prompts(DataSettings(jsonl=str(tmp_path / "rows.jsonl")), "maths", "reason", "train", seed=0)
    prompts = [source[index] for index in range(len(pairs))]
    texts, golds = [str(prompt.columns["said"]) for prompt in prompts], [prompt.answer for prompt in prompts]
    assert {*zip(texts, golds, strict=True)} == {*pairs}
    values = reward(completions=texts, answer=golds)
    other = [(text, gold, value) for text, gold, value in zip(texts, golds, values, strict=True) if value != expected]
    assert other == []


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("5", 5, RIGHT),
        ("5.0", 5, RIGHT),
        ("0.3", 0.1 + 0.2, RIGHT),
        (r"\sqrt{2}", math.sqrt(2), RIGHT),
        ("1e-07", 1e-7, RIGHT),
        ("3", ["3", "5"], RIGHT),
        (r"\sqrt{25}", [3, 5], RIGHT),
        ("3 or 5", [3, 5], WRONG),
        ("4", [3, 5], WRONG),
        ("5", math.nan, None),
        ("5", [], None),
        ("5", [None, " "], None),
    ],
)
def test_a_gold_answer_is_a_text_a_number_or_a_list_of_which_any_is_right(
    reward: Correctness, answer: str, gold: object, expected: float | None
) -> None:
    assert reward(completions=[rf"\boxed{{{answer}}}"], answer=[gold]) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        f"The answer is {' ' * 3900}5",
        "5 or " * 800,
        "not " * 1000,
        "answer is " * 400,
        "no, " * 1000,
        r"\[" * 2000,
        "$" * 4000,
        "**" * 2000,
        r"\frac{" * 600,
        "5 is a " * 550,
    ],
)
def test_hostile_prose_is_judged_in_linear_time(text: str) -> None:
    start_s = time.process_time()
    judge_cheaply(text, "5")
    assert time.process_time() - start_s < 1.0


@settings(max_examples=100, deadline=None)
@given(
    gold=st.integers(1, 999),
    other=st.integers(1000, 9999),
    joint=st.sampled_from([" or ", ", maybe ", " or perhaps ", ", or possibly ", " and "]),
    is_first=st.booleans(),
    frame=st.sampled_from(["The answer is {}.", "{}", "So the total is {}", r"\boxed{{{}}}", "<answer>{}</answer>"]),
)
def test_two_numbers_never_earn_what_one_of_them_would(
    gold: int, other: int, joint: str, is_first: bool, frame: str
) -> None:
    pair = joint.join((str(gold), str(other)) if is_first else (str(other), str(gold)))
    assert judge_cheaply(frame.format(gold), str(gold)) == RIGHT
    assert judge_cheaply(frame.format(pair), str(gold)) != RIGHT
