"""Which choice an answer settles on, in every dress, and how a right choice is read from the data."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.rewards.base import Failed
from unigrpo.rewards.multiple_choice import MultipleChoice
from unigrpo.rewards.text.choices import named_choice

FRUITS = ["an apple", "a pear", "the plum", "B-sides"]
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A, B", None),
        ("A or B", None),
        ("A and B", None),
        ("A B", None),
        ("A/B", None),
        ("A; B", None),
        ("(A) and (B)", None),
        ("either A or C", None),
        ("either A", None),
        ("A or", None),
        ("A,", None),
        ("A (or B)", None),
        ("A or a pear", None),
        ("not A", None),
        ("It isn't (A)", None),
        ("I don't think the answer is A", None),
        ("C is not the answer", None),
        ("Neither A nor B", None),
        ("Both", None),
        ("Both are correct: A and B.", None),
        ("All of the above", None),
        ("A. a pear", None),
        ("Answer: B) the plum", None),
        ("the plum (A)", None),
        ("Maybe A. Maybe B.", None),
        ("The answer is A, though B is possible.", None),
        ("The answer is A. Wait, no.", None),
        ("The answer is a", None),
        ("It is a pear tree.", None),
        ("A pear tree", None),
        ("It has vitamin C.", None),
        ("Is it A?", None),
        ("The answer is A. Never mind.", None),
        ("Anything but A", None),
        ("All but A", None),
        ("A. Wait, actually B.", "B"),
        ("A. No, it is B.", "B"),
        ("The answer is A if it is green, otherwise B.", None),
        (r"\boxed{A} is incorrect.", None),
        (r"The answer isn't \boxed{A}", None),
        ("The answer could be A", None),
        ("The answer may be (A)", None),
        ("Suppose it's A.", None),
        ("The answer is A. On reflection, B.", "B"),
        ("It could be A, but it is B.", "B"),
        ("A\nB\nC", None),
        ("A) an apple B) a pear C) the plum", None),
        ("It could be A or B, but the answer is B.", "B"),
        ("We can rule out A and C. That leaves B.", "B"),
        ("B\n\nExplanation: A is wrong because it is big.", "B"),
        ("B (a pear)", "B"),
        ("b) a pear", "B"),
        ("A? No, B", "B"),
        ("(A)", "A"),
        ("**A**", "A"),
        ("A.", "A"),
        ("a", "A"),
        ("[C]", "C"),
        ("Answer: A", "A"),
        ("option A", "A"),
        ("Option b.", "B"),
        ("The answer is B because it is green", "B"),
        ("The answer is (B), not (A).", "B"),
        ("The answer is not A but B", "B"),
        ("A is wrong, so B", "B"),
        ("A is too big. The answer is B.", "B"),
        ("It is not A. It is not B. So C.", "C"),
        ("A or B? B", "B"),
        ("Is it A? No. Is it B? Yes.", "B"),
        ("A. an apple\nB. a pear\nThe answer is B.", "B"),
        ("The answer is A or B. Hmm, I go with B.", "B"),
        ("the plum", "C"),
        ("Plum.", "C"),
        ("C: the plum", "C"),
        ("The answer is an apple", "A"),
        ("B is correct", "B"),
        ("\ufeff\uff23\u200b", "C"),
        (r"The answer is $\textbf{C}$.", "C"),
    ],
)
def test_a_choice_is_what_the_last_statement_settles_on(text: str, letter: str | None) -> None:
    assert named_choice(text, FRUITS) == letter


JOINTS = [
    " or ",
    ", ",
    " and ",
    "/",
    " & ",
    ", or maybe ",
    " or (",
    " as well as ",
    "\n",
    ". ",
    " or the option ",
    "; ",
]
FRAMES = [
    "{}",
    "The answer is {}",
    "Answer: {}.",
    "<answer>{}</answer>",
    "\\boxed{{{}}}",
    "either {}",
    "I choose {}!",
    "#### {}",
]
LETTERS = ["{}", "({})", "**{}**", "option {}"]


@QUICK
@given(st.permutations("ABCD"), st.sampled_from(JOINTS), st.sampled_from(FRAMES), st.sampled_from(LETTERS))
def test_two_letters_as_the_answer_earn_nothing(order: list[str], joint: str, frame: str, dress: str) -> None:
    text = frame.format(joint.join(dress.format(letter) for letter in order[:2]))
    values = MultipleChoice()(completions=[text] * 4, answer=list("ABCD"), choices=[FRUITS] * 4)
    assert values == [0.0] * 4, text


@pytest.mark.parametrize(
    ("gold", "choices", "arguments", "right"),
    [
        (1, FRUITS, {}, "B"),
        (1.0, FRUITS, {}, "B"),
        (2, ["1", "2", "3"], {}, "C"),
        ("2", ["1", "2", "3"], {}, "B"),
        (2, [1, 2, 3], {"gold": "text"}, "B"),
        (2, [1, 2, 3], {"gold": "index_from_0"}, "C"),
        (1, FRUITS, {"gold": "index_from_1"}, "A"),
        ("1", FRUITS, {"gold": "index_from_0"}, "B"),
        ("B", {"B": "y", "A": "x"}, {}, "B"),
        ("2", {"text": ["x", "y"], "label": ["1", "2"]}, {}, "B"),
        ("B. a pear", FRUITS, {}, "B"),
        (["B"], FRUITS, {}, "B"),
        (True, ["True", "False"], {}, "A"),
        ("B", ["A", "B", "C"], {}, "B"),
        ("B", ["B", "A"], {"gold": "letter"}, "B"),
    ],
)
def test_the_gold_is_read_by_its_type_or_as_the_recipe_says(
    gold: object, choices: object, arguments: dict[str, str], right: str
) -> None:
    reward = MultipleChoice(**arguments)  # type: ignore[arg-type]
    values = reward(completions=[f"({letter})" for letter in "ABC"], answer=[gold] * 3, choices=[choices] * 3)
    assert values == [float(letter == right) for letter in "ABC"]


@pytest.mark.parametrize(
    ("gold", "choices", "said"),
    [
        (2, [1, 2, 3], "index_from_0 or text"),
        ("1", FRUITS, "none of the choices"),
        ("B", ["B", "A"], "text or letter"),
        ("B. an apple", FRUITS, "none of the choices"),
        (7, FRUITS, "index_from_0"),
        (["A", "B"], FRUITS, "is a list"),
        ("A", "x, y", "wanted a list"),
    ],
)
def test_a_gold_in_doubt_is_an_error_by_name(gold: object, choices: object, said: str) -> None:
    (value,) = MultipleChoice()(completions=["(A)"], answer=[gold], choices=[choices])
    assert isinstance(value, Failed)
    assert said in value.reason


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("The answer is -5.", ["5", "-5", "3.5", "35"], "B"),
        ("So -5", ["5", "-5", "3.5", "35"], "B"),
        ("Answer: -$5", ["$5", "-$5", "$10", "-$10"], "B"),
        ("Answer - 5", ["5", "-5", "3.5", "35"], "A"),
        ("C++", ["C", "C++", "C#", "D"], "B"),
        ("C#", ["C", "C++", "C#", "D"], "C"),
    ],
)
def test_the_sign_of_a_choice_is_part_of_it(text: str, choices: list[str], letter: str) -> None:
    values = MultipleChoice(gold="letter")(completions=[text] * 4, answer=list("ABCD"), choices=[choices] * 4)
    assert values == [float(letter == right) for right in "ABCD"]


@pytest.mark.parametrize("piece", ["(A)", "A and/or ", "(A) or ", "A (", "((A", "A as well as "])
@pytest.mark.parametrize("tail", [" 5", "", " !x"])
def test_a_hundred_kilobytes_of_letters_take_under_a_second(piece: str, tail: str) -> None:
    text = piece * (100_000 // len(piece)) + tail
    start = time.process_time()
    named_choice(text)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A and/or B", None), ("(A) and/or (B)", None), ("(A) or (A)", "A"), ("((B))", "B"), ("(A)(A)(A) 5", "A")],
)
def test_letters_in_a_row_are_read_in_one_way(text: str, letter: str | None) -> None:
    assert named_choice(text) == letter
