"""The spellings of one number are one number."""

from fractions import Fraction

import pytest

from unigrpo.rewards.maths.normalize import normalize, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("-.5", Fraction(-1, 2)),
        ("6/16", Fraction(3, 8)),
        (r"\frac38", Fraction(3, 8)),
        ("2 1/3", Fraction(7, 3)),
        (r"3\times10^5", Fraction(300_000)),
        (r"0.\overline{3}", Fraction(1, 3)),
    ],
)
def test_a_number_is_read_exactly(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "4+4", "9" * 100_000])
def test_what_is_no_number_is_none(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(("one", "other"), [("$1,234$", "1234"), ("0.50", "1/2"), ("50\\%", "1/2")])
def test_spellings_of_one_number_have_one_value(one, other):
    assert normalize(one).value == normalize(other).value is not None


def test_words_are_compared_without_case_and_full_stop():
    assert normalize("Red.").word == normalize("red").word == "red"


def test_units_tell_lengths_apart():
    assert (normalize("12 m").value, normalize("12 m").unit) != (normalize("12 cm").value, normalize("12 cm").unit)
