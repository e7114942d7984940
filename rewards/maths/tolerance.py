"""The one rule of when two numbers are one: exact forms exactly, a decimal within its own last digit.

A decimal of seven significant digits or more stands for every number that it rounds or cuts: ``1.41421356`` for the
root of 2, ``0.0833333333333333`` for 1/12; that is a relative error below a millionth, whatever the size of the number,
so that nothing but 0 is 0. Shorter decimals (``0.333``), whole numbers and ratios mean themselves. The noise of a
``float`` (``0.30000000000000004``) is no difference.
"""

from __future__ import annotations

from fractions import Fraction

MIN_DIGITS = 7
"""Significant digits that a decimal must have to stand for a number that it is not."""
NOISE = Fraction(1, 10**14)
"""Relative; what a few operations on floats of double precision add up to."""


def last_digit(mantissa: str, exponent: int = 0) -> Fraction | None:
    """Return what the last digit of a decimal is worth; None for a whole number, or fewer digits than ``MIN_DIGITS``.

    Args:
        mantissa: digits with a point, unsigned.
        exponent: the power of ten that they are multiplied by.
    """
    _, point, decimals = mantissa.partition(".")
    if not point or len(mantissa.replace(".", "").lstrip("0")) < MIN_DIGITS:
        return None
    return Fraction(10) ** (exponent - len(decimals))


def are_one_number(first: Fraction, second: Fraction, *digits: Fraction | None) -> bool:
    """Return whether two numbers are equal, or nearer than what the last digit of either is worth.

    Args:
        first: one number.
        second: the other.
        digits: see :func:`last_digit`, of both.
    """
    if first == second:
        return True
    worth = max((digit for digit in digits if digit is not None), default=None)
    return worth is not None and abs(first - second) < max(worth, NOISE * abs(first))
