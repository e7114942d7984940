import pytest

from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.maths.spelling import are_spelt_alike, tidy


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\frac12", "1/2"),
        ("0.5", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"\$36", "36"),
        (r"15\%", "15"),
        (r"5\text{ cm}", "5"),
        ("x = 7", "7"),
        (".5x", "0.5x"),
        ("18.0", "18"),
        ("6,277", "6277.0"),
    ],
)
def test_these_are_one_spelling(first: str, second: str) -> None:
    assert are_spelt_alike(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("3, 5, 7", "3, 7, 5"),
        (r"\frac{3}{24}", r"\frac{1}{8}"),
        (r"\text{east}", "east"),
        ("7i - 2", "-2 + 7i"),
        ("2/4", "1/2"),
        ("50 mph", "50"),
        ("", "0"),
    ],
)
def test_these_are_not(first: str, second: str) -> None:
    assert not are_spelt_alike(first, second)


def test_a_spelling_is_tidied_once_and_for_all() -> None:
    for answer in (r"\frac12", r"\sqrt3", "x=5", "0.5", "3/4", r"12\text{ m}"):
        assert tidy(tidy(answer)) == tidy(answer)


def test_correctness_can_count_by_spelling() -> None:
    completions = [r"\boxed{\frac{3}{24}}", r"\boxed{1/8}", "none", ""]
    reward = Correctness(equality="spelling")
    assert reward(completions=completions, answer=[r"\frac{1}{8}"] * 3 + [None]) == [0.0, 1.0, 0.0, None]
    with pytest.raises(ValueError, match="'string' is unknown; give mathematics or spelling"):
        Correctness(equality="string")  # type: ignore[arg-type]
