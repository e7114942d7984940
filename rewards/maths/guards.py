"""What a computer algebra system must not see: numbers that do not fit in the world, and false equations."""

from __future__ import annotations

import re

from unigrpo.rewards.maths.normalize import parse_number

MAX_EXPONENT = 10_000
"""Also the largest argument of a factorial."""

_LONG_EXPONENT = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*-?\s*(\d+)")
_TOWER = re.compile(r"[\d)}!]\s*(?:\^|\*\*)[\s{(]*[\d.]+[\s)}]*(?:\^|\*\*)[\s{(]*\d")
_NESTED_TOWER = re.compile(r"(?:\^|\*\*)\s*[{(]+\s*[\d.]+\s*[{(]*\s*(?:\^|\*\*)")
_POWER_OF_POWER = re.compile(r"[)}]\s*(?:\^|\*\*)\s*[{(]+\s*\d+\s*(?:\^|\*\*)")
_FACTORIAL = re.compile(r"(\d+)\s*[)}]*\s*!")
_NESTED_FACTORIAL = re.compile(r"![)}\s]*!")
_HUGE_FACTORIAL = re.compile(r"(?:\^|\*\*)[\s{(]*\d+[\s)}]*!")
_LONG_SUM = re.compile(r"\\(?:sum|prod)[^=]{0,20}=[^^]{0,40}\^\s*\{?\s*(\d{5,}|\d+\s*\^)")
_RELATION = re.compile(r"<|>|\\(?:leq?|geq?|lt|gt|leqslant|geqslant|neq?|approx|in)(?![a-zA-Z])")

_MEMBERSHIP = re.compile(r"^\s*[a-zA-Z]\s*\\in(?![a-zA-Z])")


def is_explosive(text: str) -> bool:
    """Return whether evaluating ``text`` could take forever: power towers, vast exponents, factorials, sums."""
    patterns = (_TOWER, _NESTED_TOWER, _POWER_OF_POWER, _NESTED_FACTORIAL, _HUGE_FACTORIAL, _LONG_SUM)
    if any(pattern.search(text) for pattern in patterns):
        return True
    literals = [match[1] for pattern in (_LONG_EXPONENT, _FACTORIAL) for match in pattern.finditer(text)]
    return any(len(literal) > 6 or int(literal) > MAX_EXPONENT for literal in literals)


def is_false_equation(text: str) -> bool:
    """Return whether a chain of equalities names two different numbers, as ``1=2`` or ``x=5=6`` does."""
    values = {value for side in text.split("=") if (value := parse_number(side)) is not None}
    return len(values) > 1


def has_relation(text: str) -> bool:
    """Return whether ``text`` states an inequality or membership."""
    return _RELATION.search(text) is not None


def is_membership(text: str) -> bool:
    r"""Return whether ``text`` names a set as ``x \in S`` does."""
    return _MEMBERSHIP.search(text) is not None
