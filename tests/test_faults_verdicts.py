"""Verdicts of the text rewards on answers, golds and columns of every dress that data sets have."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.errors import UserError
from unigrpo.recipe.load import load_recipe
from unigrpo.rewards.base import Failed
from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.countdown import Countdown
from unigrpo.rewards.exact_match import ExactMatch
from unigrpo.rewards.format import Format, FormatVariant
from unigrpo.rewards.sudoku import Sudoku
from unigrpo.rewards.vqa_accuracy import VQAAccuracy
from unigrpo.scoring.items import read_items
from unigrpo.scoring.score import score_items
from unigrpo.settings.rewards import RewardSettings

FRUITS = ["an apple", "a pear", "the plum", "B-sides"]
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def exact(text: str, gold: object, normalization: str = "squad") -> object:
    return ExactMatch(normalization=normalization)(completions=[text], answer=[gold])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"),
        ("\u22125", "5"),
        ("-$5", "$5"),
        ("3.5", "35"),
        (".5", "5"),
        ("1,5", "15"),
        ("1:30", "130"),
        ("2/3", "23"),
        ("C++", "C"),
        ("C#", "C"),
        ("A-", "A"),
        ("Na+", "Na"),
        (".", "the"),
        ("the", "a"),
        ("!", "?"),
        ("5%", "5"),
        ("\u20ac5", "$5"),
        ("A, B", "B"),
        ("vitamin A", "vitamin"),
        ("10\u00b2", "102"),
        ("3\u00bd", "31/2"),
        ("caf\u00e9", "cafe"),
        ("x < 5", "x > 5"),
        ("5!", "5"),
        ("3*5*7", "357"),
        ("2*3*4", "234"),
    ],
)
def test_texts_that_say_different_things_do_not_match(one: str, other: str) -> None:
    assert (exact(one, other), exact(other, one)) == (0.0, 0.0)
    assert (exact(one, one), exact(other, other)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("$5", "5"),
        ("$5$", "5"),
        ("1,000", "1000"),
        ("50 %", "50%"),
        ("**Paris**", "Paris"),
        ("\ufeffParis\u200b.", "paris"),
        ("\u201cParis\u201d", "Paris"),
        ("U.S.", "US"),
        (r"\boxed{\text{New York}}", "New York"),
        (r"<answer>\textbf{Paris}.</answer>", "Paris"),
        (r"\boxed{\mathrm{-5}}", "-5"),
        ("the B", "B"),
        ("+5", "5"),
        ("\uff15", "5"),
        ("10\u00b2", "10^2"),
        ("The", "the"),
    ],
)
def test_the_same_in_another_dress_matches(text: str, gold: str) -> None:
    assert exact(text, gold) == 1.0


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("crimson", ["red", "crimson"], 1.0),
        ("blue", ["red", "crimson"], 0.0),
        ("23", 23.0, 1.0),
        ("23.0", 23, 1.0),
        ("23", "23", 1.0),
        ("23.0", "23", 0.0),
        ("1,000", 1000, 1.0),
        ("1", True, 0.0),
        ("true", True, 1.0),
        ("0", False, 0.0),
        ("5", -5, 0.0),
        ("-5", -5.0, 1.0),
        ("0.3", 0.30000000000000004, 1.0),
        ("nan", float("nan"), None),
        ("3", [3, "three"], 1.0),
        ("x", {"text": ["x", "y"], "answer_start": [0]}, 1.0),
        ("y", {"value": "x", "aliases": ["y"]}, 1.0),
        ("x", [None, ""], None),
        ("\u200b", "\u200b", None),
        ("\u3164", ["\u3164", "\ufeff"], None),
        ("\u200b", ["x", "\u200b"], 0.0),
    ],
)
@pytest.mark.parametrize("normalization", ["none", "case", "squad"])
def test_golds_keep_the_types_of_their_file(text: str, gold: object, value: float | None, normalization: str) -> None:
    assert exact(text, gold, normalization) == value


def test_an_object_that_holds_no_answer_is_an_error_that_names_its_keys() -> None:
    found = [exact("x", {"label": 1}), VQAAccuracy()(completions=["x"], answer=[[{"label": 1}]])[0]]
    assert all(isinstance(one, Failed) and "label" in one.reason for one in found)


@QUICK
@given(st.text("ab1 .,-+#'\u00b2", max_size=8), st.text("ab1 .,-+#'\u00b2", max_size=8))
def test_exact_match_never_joins_different_letters_or_digits(one: str, other: str) -> None:
    def said(text: str) -> str:
        words = re.sub(r"\b(?:a|an|the)\b", "", unicodedata.normalize("NFKC", text))
        return "".join(sign for sign in words if sign.isalnum())

    if said(one) != said(other) and one.strip():
        assert exact(other, one) != 1.0


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("a", "the", 0.0),
        ("a", "a", 1.0),
        ("?", "!", 0.0),
        ("2", 2.0, 1.0),
        ("two", [2] * 10, 1.0),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
        ("red", [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(10)], 1.0),
        ("\u200bred", "red", 1.0),
        ("red", [], None),
    ],
)
@pytest.mark.parametrize("column", ["answer", "answers"])
def test_vqa_takes_annotators_under_either_name(text: str, gold: object, value: float | None, column: str) -> None:
    assert VQAAccuracy()(completions=[text], **{column: [gold]})[0] == (
        value if value is None else pytest.approx(value)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>x</think>\u200b", 0.0),
        ("<think>x</think>\u00a0\u3164\u2800\u034f\ufe0f\ufeff", 0.0),
        ("\ufeff<think>x</think> 5", 1.0),
        ("\u200b\u00a0<think>x</think> 5", 1.0),
        ("<think>x</think> 5</thi", 0.0),
        ("<think>x</think> 5</think", 0.0),
        ("<think>x</think> 5 <", 1.0),
        ("<think>x</think> <think a=1>5", 0.0),
        ("<think a=1>x</think> 5", 0.0),
        ("<think>x</think> <THINK>5", 0.0),
        ("<think>a<think>b</think></think>5", 0.0),
        ("<think>x</think>a <thinking> b", 1.0),
    ],
)
def test_format_sees_what_a_reader_sees(text: str, value: float) -> None:
    assert Format("think")(completions=[text]) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>x</think><answer>\u200b</answer>", 0.0),
        ("\ufeff<think>x</think><answer>5</answer>\u200b", 1.0),
        ("<think>x</think><answer id=1>5</answer>", 0.0),
        ("<think>x</think><answer>5</ans", 0.0),
    ],
)
def test_an_answer_that_shows_nothing_is_none(text: str, value: float) -> None:
    assert Format("think_answer")(completions=[text]) == [value]


@pytest.mark.parametrize("variant", ["trl", "mmada"])
def test_a_byte_order_mark_is_passed_over_by_published_layouts(variant: FormatVariant) -> None:
    assert Format(variant)(completions=["\ufeff<think>x</think> 5"]) == [1.0]


@pytest.mark.parametrize(
    "columns",
    [
        {"nums": [3, 5, 7], "target": 22},
        {"numbers": [3, 5, 7], "target": 22},
        {"numbers": "3,5,7", "target": "22"},
        {"nums": "[3, 5, 7]", "target": 22.0},
        {"input": "3,5,7", "output": "22"},
        {"nums": [3, 5, 7], "answer": 22},
        {"nums": [3, 5, 7], "target": 22, "answer": "3*5+7"},
        {"answer": {"numbers": [3, 5, 7], "target": 22}},
        {"answer": [[3, 5, 7], 22]},
        {"answer": "[[3, 5, 7], 22]"},
    ],
)
def test_countdown_reads_the_columns_of_those_who_publish_it(columns: dict[str, object]) -> None:
    texts = ["<answer>3*5+7</answer>", "<answer>3*5+5</answer>"]
    assert Countdown()(completions=texts, **{name: [value] * 2 for name, value in columns.items()}) == [1.0, 0.0]  # type: ignore[list-item]


def test_countdown_that_finds_no_task_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    reward = Countdown()
    for _ in range(3):
        assert reward(completions=["3"] * 4, answer=["42"] * 4) == [None] * 4
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"answer": "4321124334122134"},
        {"answer": 4321124334122134},
        {"answer": [[4, 3, 2, 1], [1, 2, 4, 3], [3, 4, 1, 2], [2, 1, 3, 4]]},
        {"solution": ["4321", "1243", "3412", "2134"]},
    ],
)
@pytest.mark.parametrize("puzzle", ["4020104030020130", [[4, None, 2, 0], [1, 0, 4, 0], [3, 0, 0, 2], [0, 1, 3, 0]]])
def test_sudoku_takes_texts_and_lists(columns: dict[str, object], puzzle: object) -> None:
    given = {name: [value] * 2 for name, value in columns.items()}
    texts = ["4321124334122134", "4020104030020130"]
    assert Sudoku()(prompts=["Solve."] * 2, completions=texts, puzzle=[puzzle] * 2, **given) == [1.0, 0.0]  # type: ignore[arg-type]


def recipe_with(folder: Path, row: dict[str, object], reward: str, more: str = "") -> Path:
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "?", **row}) + "\n")
    data = f"{{jsonl: prompts.jsonl, eval_jsonl: prompts.jsonl{more}}}"
    sampling = "{completion_length: 8, num_denoising_steps: 8}"
    (folder / "recipe.yaml").write_text(
        "name: t\nnum_steps: 1\ngroup_size: 2\nlearner: {lr: 0.001}\npolicy: {path: 'asset:tiny_policy'}\n"
        f"tasks: {{reason: {{data: {data}, prompts_per_step: 2, sampling: {sampling}}}}}\n"
        f"rewards: {{it: {{use: 'unigrpo.rewards.{reward}'}}}}\n"
    )
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("row", "reward", "wanted"),
    [
        ({"numbers_given": [1], "target": 1}, "countdown:Countdown", "answer, or nums and target, or numbers and "),
        ({"ans": "x"}, "exact_match:ExactMatch", "needs answer, and"),
        ({"answer": None}, "multiple_choice:MultipleChoice", "needs answer, and"),
        ({"gold": ["x"]}, "vqa_accuracy:VQAAccuracy", "needs answers, or answer"),
        ({"target": "1"}, "sudoku:Sudoku", "needs answer, or solution"),
        ({"test_list": ["x"]}, "code:Code", "needs tests, or entry_point and cases, or inputs and outputs"),
    ],
)
def test_a_reward_whose_columns_no_file_has_is_refused_by_name(
    tmp_path: Path, row: dict[str, object], reward: str, wanted: str
) -> None:
    with pytest.raises(UserError, match=re.escape(wanted)) as refusal:
        load_recipe(str(recipe_with(tmp_path, row, reward)), [])
    assert next(iter(row)) in str(refusal.value) or row == {"answer": None}


@pytest.mark.parametrize(
    ("row", "reward", "more"),
    [
        ({"nums": [1], "target": 1}, "countdown:Countdown", ""),
        ({"ans": "x"}, "exact_match:ExactMatch", ", columns: {answer: ans}"),
        ({"answers": ["x"]}, "vqa_accuracy:VQAAccuracy", ""),
        ({}, "format:Format", ""),
    ],
)
def test_a_reward_whose_columns_are_there_is_not_refused(
    tmp_path: Path, row: dict[str, object], reward: str, more: str
) -> None:
    assert load_recipe(str(recipe_with(tmp_path, row, reward, more)), []).name == "t"


def test_a_row_of_a_file_keeps_its_types_up_to_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "saved.jsonl"
    rows = [
        {"completion": "<answer>3*5+7</answer>", "nums": [3, 5, 7], "target": 22, "task": "countdown"},
        {"completion": "red", "answers": [{"answer": "red"}] * 10, "task": "vqa"},
        {"completion": "The answer is A or B", "answer": "A", "choices": FRUITS, "task": "choice"},
        {"completion": "B, since A is too big", "answer": "B", "choices": FRUITS, "task": "choice"},
    ]
    path.write_text("".join(json.dumps({"prompt": f"{number}?", **row}) + "\n" for number, row in enumerate(rows)))
    uses = {
        "countdown": "countdown:Countdown",
        "vqa": "vqa_accuracy:VQAAccuracy",
        "choice": "multiple_choice:MultipleChoice",
    }
    rewards = {
        name: RewardSettings(use=f"unigrpo.rewards.{use}", tasks=[name], timeout_s=20.0, worker="one")
        for name, use in uses.items()
    }
    scores = score_items(rewards, read_items(path))
    assert [item.values[row["task"]] for item, row in zip(scores.items, rows, strict=True)] == [1.0, 1.0, 0.0, 1.0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("-5", "5", 0.0),
        ("5", "-5", 0.0),
        ("C++", "C", 0.0),
        ("not -.5", "not .5", 0.0),
        ("**yes**", "yes", 1.0),
        (r"\boxed{\text{yes}}", "yes", 1.0),
        ("`two`", "2", 1.0),
        ("-5", -5, 1.0),
        ("c++", "C++", 1.0),
    ],
)
def test_vqa_keeps_the_signs_that_mean_something(text: str, gold: object, value: float) -> None:
    assert VQAAccuracy()(completions=[text], answers=[[gold] * 10]) == [value]


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        (r"The answer is not \boxed{42}.", "42", 0.0),
        (r"It isn't $\boxed{42}$", "42", 0.0),
        (r"\boxed{42} is wrong.", "42", 0.0),
        (r"$\boxed{42}$. Wait, that's wrong.", "42", 0.0),
        (r"\boxed{42}. Scratch that.", "42", 0.0),
        (r"The answer is \boxed{41}. It is not \boxed{42}.", "41", 0.0),
        (r"It is not 41 but \boxed{42}.", "42", 1.0),
        (r"\boxed{42}. Wait, let me check. $6 \cdot 7 = 42$. Yes.", "42", 1.0),
        (r"\boxed{41} is wrong. So \boxed{42}.", "42", 1.0),
        (r"\boxed{42}. Is that wrong? That is right.", "42", 1.0),
    ],
)
def test_a_box_that_is_denied_or_taken_back_is_no_answer(text: str, gold: str, value: float) -> None:
    reward = Correctness()
    assert (exact(text, gold), reward(completions=[text], answer=[gold])) == (value, [value])
