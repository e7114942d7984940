r"""From a JSONL file to the verdict: words beside an answer, numbers of any size, and signs of exact match."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unigrpo.data.sources import load_prompts
from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.exact_match import ExactMatch
from unigrpo.rewards.multiple_choice import MultipleChoice
from unigrpo.settings.tasks import DataSettings

FIVE = {
    r"Maybe \boxed{5}?": 0.0,
    r"Maybe \boxed{5}": 0.0,
    r"Perhaps the answer is \boxed{5}.": 0.0,
    r"It might be $\boxed{5}$.": 0.0,
    r"Could it be \boxed{5}?": 0.0,
    r"\boxed{5}?": 0.0,
    r"Is it \boxed{5}? Yes.": 1.0,
    r"The answer is \boxed{5}, right?": 1.0,
    r"\boxed{5} is wrong": 0.0,
    r"\boxed{5} Actually it's 43": 0.0,
    r"\boxed{5}. Actually, the answer is 6.": 0.0,
    r"$\boxed{5}$. Wait, it is $6$.": 0.0,
    r"\boxed{5} Actually, that is right.": 1.0,
    r"\boxed{5}. No, it is 5.": 1.0,
    r"\boxed{5} Wait, let me check: 2+3=5. Yes.": 1.0,
    r"\boxed{5} Note that 6 was never possible.": 1.0,
    r"\boxed{5 at most}": 0.0,
    "The answer is 5 or more.": 0.0,
    "The answer is 5 apples or fewer.": 0.0,
    "The answer is 5 at least.": 0.0,
    "5 at most": 0.0,
    "5 or six": 0.0,
    "5 or so": 0.0,
    "5 and up": 0.0,
    "roughly between 4 and 5": 0.0,
    "It cannot be 4, so the answer is 5.": 1.0,
    "Since 4 is wrong, the answer is 5.": 1.0,
    "The answer is 5 because 4 is wrong.": 1.0,
    "As x is not 0, the answer is 5.": 1.0,
    "It might be 4, but the answer is 5.": 1.0,
    "It is not 5, so the answer is 4.": 0.0,
    "Since 5 is wrong, the answer is 4.": 0.0,
    "The answer is 4 because 5 is wrong.": 0.0,
    "The answer is 5, but that is wrong.": 0.0,
    "The answer is 5, which is wrong.": 0.0,
    "The answer is 4, but 5 is possible, too.": 0.0,
    r"\boxed{5}. <answer>6": 0.0,
    r"\boxed{5} <answer>": 0.0,
    r"<answer>\boxed{5}": 1.0,
    r"\boxed{5} #### 6": 1.0,
}
SAID = {
    r"I doubt that it is \boxed{5}.": 0.0,
    r"There is no doubt that it is \boxed{5}.": 1.0,
    r"Probably \boxed{5}.": 0.0,
    r"My best guess is \boxed{5}.": 0.0,
    r"By guess and check, the answer is \boxed{5}.": 1.0,
    r"I don't think it's \boxed{5}.": 0.0,
    r"\boxed{5} can't be right.": 0.0,
    r"\boxed{5}, which cannot be exceeded.": 1.0,
    r"\boxed{5}, maybe.": 0.0,
    r"\boxed{5}. Maybe a picture helps.": 1.0,
    r"\boxed{5} but I am not sure.": 0.0,
    r"\boxed{5} or more": 0.0,
    r"\boxed{5} or 6": 0.0,
    r"\boxed{5} or, in words, five.": 1.0,
    r"\boxed{5}. So the final answer is 6.": 0.0,
    r"\boxed{5}. So the final answer is 5.": 1.0,
    r"At least \boxed{5}": 0.0,
    r"The number of those who like neither is \boxed{5}.": 1.0,
    r"The number of people who are not is \boxed{5}.": 1.0,
    "Maybe <answer>5</answer>": 0.0,
    "It is not <answer>5</answer>": 0.0,
    "<answer>5</answer> Wait, it's 6.": 0.0,
    "It is not 4. <answer>5</answer>": 1.0,
    "<answer>Ann has 5 apples left in July.</answer>": 1.0,
    "<answer>Ann has at least 5 apples.</answer>": 0.0,
    "#### 5\nWait, it's 6.": 0.0,
    "#### 5\nNo, that's wrong.": 0.0,
    "#### 5\nThe answer is 5.": 1.0,
    "I guess 5.": 0.0,
    "The answer is likely 5.": 0.0,
    "The answer is nearly 5.": 0.0,
    "She sold at least 5 clips.": 0.0,
    "I'm not certain, but I think it's 5.": 0.0,
    "The answer is 5 because I'm guessing.": 0.0,
    "The answer is 5 (wrong).": 0.0,
    "The answer is 5 (2 from Ann and 3 from Bob).": 1.0,
    "She sold 5 clips, as she sold at least 3 in April.": 1.0,
    "The total is 5, which is more than 3.": 1.0,
    "There are 5 integers between 1 and 7.": 1.0,
    "The answer is $x = 5$, where $x > 0$.": 1.0,
    "Without a doubt, the answer is 5.": 1.0,
    "The answer is not 4, since May is half. It is 5.": 1.0,
    "The answer is 5. 4 is wrong.": 1.0,
    "2 + 3 = 5 \u2713": 1.0,
    r"It costs \$5 in all.": 1.0,
    "\\begin{align*}\nx &= 2+3 \\\\\n&= 5\n\\end{align*}": 1.0,
}
BEHIND = [
    " could not be the answer.",
    " is not possible",
    " is impossible.",
    " fails.",
    " does not work.",
    " would be wrong.",
    " not",
    ". No.",
    ". Nope, 14.",
    ". Edit: it's 14.",
    " -> 14",
    ". That fails, so 6.",
    ". This is a contradiction.",
]
MARKED = [
    (mark + behind, "12", 0.0) for mark in (r"\boxed{12}", "<answer>12</answer>", "#### 12\n") for behind in BEHIND
]
MARKED += [
    (r"So it is \boxed{12}, not 13.", "12", 1.0),
    (r"\boxed{12}. No other value works.", "12", 1.0),
    (r"\boxed{12}. It is impossible to get more.", "12", 1.0),
    (r"\boxed{12}. Wrong answers are 11 and 13.", "12", 1.0),
    (r"so the maximum is \boxed{12} > 4.", "12", 1.0),
]
PROSE = [
    ("The answer is 12; alternatively 13.", "12", 0.0),
    ("The answer is 12, if not 13.", "12", 0.0),
    ("The answer is 12 unless n=1, then 13.", "12", 0.0),
    ("The answer is roughly 12.", "12", 0.0),
    ("The answer is 12 if x=1, else 13.", "12", 0.0),
    ("It exceeds 12.", "12", 0.0),
    ("12 is one possibility.", "12", 0.0),
    ("Nobody says the answer is 12.", "12", 0.0),
    ("None of 12.", "12", 0.0),
    ("There is no doubt that the answer is 12.", "12", 1.0),
    ("The answer is none other than 12.", "12", 1.0),
    ("The answer is twelve.", "12", 1.0),
    ("The answer is ninety-nine.", "99", 1.0),
    ("The answer is thirteen.", "12", 0.0),
]
SIZES = [
    (r"\boxed{\text{twelve}}", "12", 1.0),
    (r"\boxed{10^{30}}", r"\sqrt{10^{60}+1}", 0.0),
    (r"\boxed{10^{-10}}", 1e-10, 1.0),
    (r"\boxed{1 \times 10^{-10}}", 1e-10, 1.0),
    (r"\boxed{1e-10}", 1e-10, 1.0),
    (r"\boxed{10^{-10}}", "1e-10", 1.0),
    (r"\boxed{10^{-9}}", 1e-10, 0.0),
    (r"\boxed{6.02 \times 10^{23}}", 6.02e23, 1.0),
    (r"\boxed{6.02e23}", 6.02e23, 1.0),
    (r"\boxed{602000000000000000000000}", 6.02e23, 1.0),
    (r"\boxed{6.03e23}", 6.02e23, 0.0),
    (r"\boxed{10^{300}}", 1e300, 1.0),
    (r"\boxed{-10^5}", -100000, 1.0),
    (r"\boxed{0.333...}", "1/3", 1.0),
    (r"\boxed{0.1666\ldots}", r"\frac16", 1.0),
    (r"\boxed{0.142857142857...}", "1/7", 1.0),
    (r"\boxed{0.333...}", "1/4", 0.0),
    (r"\boxed{0.34...}", "1/3", 0.0),
    (r"\boxed{12{:}30}", "12:30", 1.0),
]
SIGNS = [
    ("6.02e23", 6.02e23, 1.0),
    ("602000000000000000000000", 6.02e23, 1.0),
    ("1e-5", 1e-5, 1.0),
    ("1e25", 1e25, 1.0),
    ("1e5", "1e-5", 0.0),
    ("-x", "x", 0.0),
    ("x", "-x", 0.0),
    ("- 5", "5", 0.0),
    ("- 5", "-5", 1.0),
    ("- 5 apples", "5 apples", 1.0),
    ("2 * 3", "2 3", 0.0),
    (".NET", "NET", 0.0),
    ("NET.", "NET", 1.0),
    ("... NET", "NET", 1.0),
    ("- item", "item", 1.0),
]
CHOICES = [
    ("B; alternatively C", "B", 0.0),
    ("B. On second thought, C.", "B", 0.0),
    ("B. On second thought, C.", "C", 1.0),
    ("I guess B", "B", 0.0),
    (r"\boxed{B}. No, C.", "B", 0.0),
    (r"\boxed{B} does not work", "B", 0.0),
    ("A, no wait B", "A", 0.0),
    ("A, no wait B", "B", 1.0),
    ("A wait, no, B", "A", 0.0),
    ("A, possibly", "A", 0.0),
    ("A (not sure)", "A", 0.0),
    ("answer: a)", "A", 1.0),
    ("The answer is a.", "A", 1.0),
    ("The answer is a", "A", 0.0),
    ("the answer: i.", "I", 1.0),
    ("Maybe <answer>A</answer>", "A", 0.0),
    ("<answer>A</answer> Wait, that's wrong.", "A", 0.0),
    (r"\boxed{A}. I'm not sure.", "A", 0.0),
    (r"B is not right, so \boxed{A}.", "A", 1.0),
]


@pytest.mark.parametrize(
    ("reward", "rows"),
    [
        pytest.param(Correctness, [(text, "5", value) for text, value in FIVE.items()], id="beside an answer"),
        pytest.param(Correctness, [(text, "5", value) for text, value in SAID.items()], id="around an answer"),
        pytest.param(Correctness, MARKED, id="behind a marked answer"),
        pytest.param(Correctness, PROSE, id="prose"),
        pytest.param(Correctness, SIZES, id="numbers of any size"),
        pytest.param(ExactMatch, SIGNS, id="signs of exact match"),
        pytest.param(MultipleChoice, CHOICES, id="choices"),
    ],
)
def test_rows_of_a_file_have_their_verdict(
    reward: Callable[[], Any], rows: list[tuple[str, object, float]], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": "?", "said": text, "answer": gold}) + "\n" for text, gold, _ in rows))
    source = load_prompts(DataSettings(jsonl=str(file)), "a", "reason", "train", seed=0)
    prompts = [source[index] for index in range(len(rows))]
    golds = {(prompt.columns["said"], prompt.answer): prompt for prompt in prompts}
    wanted = {(text, gold): value for text, gold, value in rows}
    assert golds.keys() == wanted.keys()
    columns = {"completions": [text for text, _ in wanted], "answer": [gold for _, gold in wanted]}
    values = reward()(prompts=["?"] * len(wanted), **columns)
    assert dict(zip(wanted, values, strict=True)) == wanted
