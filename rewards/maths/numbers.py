"""Equality of two numbers of the algebra system, by the rule of :mod:`unigrpo.rewards.maths.tolerance`.

math-verify compares decimals, and what it cannot simplify, to six or fifteen places behind the point, where all that is
small is 0: ``1/2004!`` and ``1/2006!``. :func:`install` puts this comparison in that one's place, so that lists, sets,
intervals and matrices go by it, too. Only the process that compares imports this.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy
from math_verify import grader

from unigrpo.rewards.maths.tolerance import NOISE, are_one_number, last_digit

_EXACT_DIGITS = 200
"""Relative digits to which two exact forms must agree where the algebra system does not bring them into one."""
_DECIMAL_DIGITS = 30
_Number = Any
"""An expression or a matrix of expressions; sympy declares no types."""


def install() -> None:
    """Have math-verify compare numbers by :func:`is_same_number`; for this process."""
    grader.sympy_numeric_eq = is_same_number


def is_same_number(gold: _Number, given: _Number, *places: int) -> bool:
    """Return whether two expressions are one number; matrices, element by element.

    Args:
        gold: the gold answer.
        given: the answer.
        places: math-verify's places behind the point, which are not used.
    """
    if isinstance(gold, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase):
        pairs = zip(gold.flat(), given.flat(), strict=True) if gold.shape == given.shape else None
        return pairs is not None and all(is_same_number(one, other) for one, other in pairs)
    first, second = (grader.get_pct_val(side, side) for side in (gold, given))
    if isinstance(first, sympy.Integer) and isinstance(second, sympy.Integer):
        return bool(first == second)  # 35 may stand for 35%.
    first, second = (grader.safe_sympy_doit(side) for side in (gold, given))
    if first == second:
        return True
    if not all(isinstance(side, sympy.Expr) for side in (first, second)):
        return False
    if names := first.free_symbols | second.free_symbols:
        return bool(sympy.N(first - second) == 0) or _has_same_terms(first, second, names)
    if first.is_Rational and second.is_Rational and not (first.is_Float or second.is_Float):
        return False
    if first.has(sympy.Float) or second.has(sympy.Float):
        parts = zip(first.as_real_imag(), second.as_real_imag(), strict=True)
        return all(_is_rounded(one, other) for one, other in parts)
    return _is_exact(first, second)


def _has_same_terms(first: _Number, second: _Number, names: set[_Number]) -> bool:
    """Return whether two polynomials, or numbers in ``i``, have one coefficient for each power, decimals rounded."""
    if not (first.has(sympy.Float) or second.has(sympy.Float)):
        return False
    plain = {symbol: sympy.Symbol(symbol.name) for symbol in names}  # The parser has a real and a complex i.
    sides = [side.xreplace(plain) for side in (first, second)]
    try:
        terms = [dict(sympy.Poly(side, *sorted(set(plain.values()), key=str)).as_dict()) for side in sides]
    except (sympy.PolynomialError, sympy.CoercionFailed):
        return False
    return all(
        _is_rounded(*(sympy.sympify(side.get(power, 0)) for side in terms)) for power in {**terms[0], **terms[1]}
    )


def _is_exact(first: _Number, second: _Number) -> bool:
    """Return whether the difference vanishes beside the numbers themselves."""
    difference = sympy.N(abs(first - second), 15, maxn=4 * _EXACT_DIGITS)
    size = sympy.N(abs(first), 15)
    if not (difference.is_Float or difference.is_zero) or not size.is_Float:
        return False
    return bool(difference <= size * sympy.Float(10) ** -_EXACT_DIGITS)


def _is_rounded(first: _Number, second: _Number) -> bool:
    sides = [_value_and_digit(side) for side in (first, second)]
    values = [value for value, _ in sides if value is not None]
    return len(values) == 2 and are_one_number(values[0], values[1], *(digit for _, digit in sides))


def _value_and_digit(number: _Number) -> tuple[Fraction | None, Fraction | None]:
    """Return the value, and what its last digit is worth; where decimals are part of an expression, their noise."""
    if number.is_Float:
        mantissa, _, exponent = str(number).partition("e")
        mantissa = mantissa.rstrip("0")
        digit = last_digit(mantissa.lstrip("-"), int(exponent or 0))
        return Fraction(mantissa) * Fraction(10) ** int(exponent or 0), digit
    if number.is_Rational:
        return Fraction(int(number.p), int(number.q)), None
    value = sympy.N(number, _DECIMAL_DIGITS)
    if not value.is_Float or not value.is_finite:
        return None, None
    exact = Fraction(str(value))
    return exact, NOISE * abs(exact) if number.has(sympy.Float) else None
