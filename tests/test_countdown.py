import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from unigrpo.rewards.countdown import ArithmeticSyntaxError, Countdown, read_arithmetic, read_task
from unigrpo.testing.conformance import check_reward

TASK = "[[3, 5, 7], 22]"


def score(text: object, gold: object = TASK, **settings: object) -> float | None:
    return Countdown(**settings)(prompts=["?"], completions=[text], answer=[gold])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"<answer>\boxed{3 * 5 + 7}</answer>", 1.0),
        ("<answer>3*5+7</answer>", 1.0),
        ("<answer>3*5+7 = 22</answer>", 1.0),
        ("<answer>22 = 3*5+7</answer>", 1.0),
        ("3*5+7", 1.0),
        (r"\boxed{3 \times 5 + 7}", 1.0),
        (r"\boxed{3 \cdot 5 + 7}", 1.0),
        (r"\boxed{\left(3 \cdot 5\right) + 7}", 1.0),
        ("\\boxed{7 + 3 \u00d7 5}", 1.0),
        (r"\boxed{3*5+7}<|endoftext|>\boxed{1}", 1.0),
        ("<answer>\\boxed{3*5+7>\n</answer>", 1.0),
        (r"\boxed{22}", 0.0),
        (r"\boxed{3*5+7+0}", 0.0),
        (r"\boxed{3*5+3+7-3}", 0.0),
        (r"\boxed{35 - 13}", 0.0),
        (r"\boxed{3*5-7 = 22}", 0.0),
        ("it is 3*5+7, I think", 0.0),
        ("<answer>3*5+7", 0.0),
        (r"<answer>\boxed{3*5+7", 0.0),
        ("<answer>3*5+7 = 23</answer>", 0.0),
        ("<answer>23 = 3*5+7</answer>", 0.0),
        ("<answer>3*5+7 = 22? no</answer>", 0.0),
        ("<answer>3*5+7 = x</answer>", 0.0),
        (r"The answer is not \boxed{3*5+7}", 0.0),
        ("<answer>3*5+7 = 15+7 = 22.0</answer>", 1.0),
        ("<answer>`3*5+7`</answer>", 1.0),
        ("<answer>**3*5+7**</answer>", 1.0),
        ("<answer>\u200b3*5+7</answer>", 1.0),
        (r"\boxed{\text{3*5+7}}", 1.0),
        ("", 0.0),
    ],
)
def test_one_answer(text: str, value: float) -> None:
    assert score(text) == value


def test_fewer_numbers_may_be_allowed() -> None:
    assert score(r"\boxed{3 * 5}", "[[3, 5, 7], 15]") == 0.0
    assert score(r"\boxed{3 * 5}", "[[3, 5, 7], 15]", needs_all=False) == 1.0
    assert score(r"\boxed{5 * 5 - 7 - 3}", "[[3, 5, 7], 15]", needs_all=False) == 0.0


def test_an_attempt_may_be_worth_a_little() -> None:
    assert [score(text, attempt_value=0.1) for text in (r"\boxed{3+5+7}", r"\boxed{3**5}", "none")] == [0.1, 0.0, 0.0]


def test_a_list_and_json_text_are_the_same_and_others_do_not_apply() -> None:
    assert read_task([[3, 5, 7], 22]) == read_task(TASK) == ((3, 5, 7), Fraction(22))
    assert [score("3*5+7", gold) for gold in ([[3, 5, 7], 22], None, "42", "red", "[]")] == [1.0, *[None] * 4]
    assert score(Image.new("RGB", (2, 2))) is None
    assert Countdown()(completions=["3"]) == [None]


def test_values_are_those_of_exact_arithmetic() -> None:
    cases = {
        "1/3+1/3+1/3": Fraction(1),
        "8/(3-8/3)": Fraction(24),
        "2-3-4": Fraction(-5),
        "2-(3-4)": Fraction(3),
        "-(2+-3)*4": Fraction(4),
        "24/4/2": Fraction(3),
        r"\frac{12}{4} * 2": Fraction(6),
        "[1+2]*3.": Fraction(9),
    }
    assert {text: read_arithmetic(text).value for text in cases} == cases
    assert read_arithmetic("1/(2-2)").value is None
    assert read_arithmetic("12+3*12").numbers == (12, 3, 12)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9^9^9^9",
        "9" * 400,
        "1+" * 140 + "9" * 13,
        "(" * 100 + "1" + ")" * 100,
        "-" * 200 + "1",
        "2(3)",
        "1 2",
        "1 +",
        "(1",
        "1)",
        "__import__('os')",
        "abs(1)",
        "1e9",
        "100000000!",
        "3 // 2",
        "0x10",
        "1_000",
        "=",
        "",
        "\u0665",
        "x" * 299,
    ],
)
def test_anything_else_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ArithmeticSyntaxError):
        read_arithmetic(text)
    assert time.process_time() - start < 0.05


def test_the_longest_expression_takes_milliseconds() -> None:
    text = "*".join(["999999999999"] * 23)
    start = time.process_time()
    assert read_arithmetic(text).value == 999999999999**23
    assert time.process_time() - start < 0.05


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="attempt_value is 1"):
        Countdown(attempt_value=1.0)
    with pytest.raises(ValueError, match=r"some of \['box', 'tag', 'hashes', 'text'\]"):
        Countdown(sources=["boxed"])  # type: ignore[list-item]


def test_reward_keeps_its_contract() -> None:
    completions = ["3*5+7", r"\boxed{3+5+7}", "9**9**9", "x"]
    given = check_reward(Countdown(attempt_value=0.1), prompts=["?"] * 4, completions=completions, answer=[TASK] * 4)
    assert given == [1.0, 0.1, 0.0, 0.0]


def test_verdicts_on_real_outputs_are_the_published_ones(test_data: Path) -> None:
    folder = test_data / "llada_generations"
    verdicts = json.loads((folder / "verdicts.json").read_text())["items"]
    given, wanted = [], []
    for name in (name for name in verdicts if name.startswith("countdown")):
        rows = json.loads((folder / name).read_text())["generations"]
        given += Countdown()(
            prompts=[row["question"] for row in rows],
            completions=[row["generations"] for row in rows],
            answer=[json.dumps(row["ground_truth"]) for row in rows],
        )
        wanted += [float(item["is_correct"]) for item in verdicts[name]]
    assert given == wanted
    assert (sum(value or 0 for value in given), len(given)) == (27, 148)
