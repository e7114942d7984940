"""What an answer column accepts, with its types kept: a text, a number, a list of them, or a data set's own objects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from unigrpo.rewards.text.plain import is_blank

Gold: TypeAlias = str | int | float | bool

_KEYS = ("answer", "text", "value")
"""Where an object has its answer: VQA's, SQuAD's (a list of texts), TriviaQA's (with ``aliases``)."""
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d{1,3})?")
_MINUS_SIGNS = str.maketrans("\u2212\ufe63\uff0d", "---")
_MAX_DIGITS = 400
_FLOAT_NOISE = 1e-9
"""Relative: a number of a data file that is no whole one has the rounding of whoever computed it."""


def golds_of(column: object) -> list[Gold]:
    """Return what a row of an answer column accepts; nothing where it is empty, blank or no finite number.

    Raises:
        ValueError: for an object without an answer under a name that is known.
    """
    if isinstance(column, Mapping):
        found = [column[key] for key in _KEYS if column.get(key) is not None]
        if not found:
            raise ValueError(f"an answer is an object of {sorted(map(str, column))}; wanted one of {', '.join(_KEYS)}")
        return [gold for item in (found[0], column.get("aliases")) for gold in golds_of(item)]
    if isinstance(column, Sequence) and not isinstance(column, str | bytes):
        return [gold for item in column for gold in golds_of(item)]
    if isinstance(column, float) and not math.isfinite(column):
        return []
    if isinstance(column, bool | int | float):
        return [column]
    return [str(column)] if column is not None and not is_blank(str(column)) else []


def text_of(gold: Gold) -> str:
    """Return a gold as text: true and false as JSON has them, a whole number without a point."""
    if isinstance(gold, bool):
        return str(gold).lower()
    if isinstance(gold, float) and gold.is_integer():
        return f"{Decimal(repr(gold)):f}".removesuffix(".0")
    return str(gold)


def is_number_of(text: str, gold: Gold) -> bool:
    """Return whether a text is the number that a gold is: 23 is spelt 23, 23.0, 1,000 has a comma or none.

    False where the gold is a text or a truth value, which are no numbers.
    """
    if isinstance(gold, str | bool):
        return False
    plain = text.strip().translate(_MINUS_SIGNS)
    if len(plain) > _MAX_DIGITS or not any(map(str.isdecimal, plain)) or not _NUMBER.fullmatch(plain):
        return False
    try:
        given = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return False
    if isinstance(gold, float) and not gold.is_integer():
        return math.isclose(float(given), gold, rel_tol=_FLOAT_NOISE)
    return given == Decimal(repr(gold) if isinstance(gold, float) else gold)
