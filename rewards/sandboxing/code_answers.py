"""Compare what a program gave with what was wanted, without ever making an object of it.

What comes is JSON with tags (see :mod:`unigrpo.rewards.sandboxing.sandbox_harness`). It is walked along the wanted
value, so that a hostile size, depth or hash costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unigrpo.rewards.sandboxing.sandbox_harness import UnshippableError, encode

_TOLERANCE = 1e-6
"""Relative and absolute difference by which a float may miss the wanted one."""


def to_data(value: Any) -> Any:
    """Return a value of a data column with tags.

    Raises:
        UnshippableError: if it is not data.
    """
    return encode(value, _refuse)


def _refuse(value: Any) -> Any:
    raise UnshippableError(f"a {type(value).__name__} cannot be given to a program; give JSON values")


def equals(data: Any, wanted: Any) -> bool:
    """Return whether tagged data is the wanted JSON value.

    Types count: True is not 1 and "1" is not 1. A tuple is as good as a list, 2.0 as good as 2, and a float may differ
    by one in a million.
    """
    if isinstance(data, dict):
        ((tag, content),) = data.items() if len(data) == 1 else [("", None)]
        if tag == "int":
            return isinstance(wanted, int) and content == hex(wanted)
        if tag == "tuple":
            return isinstance(content, list) and equals(content, wanted)
        return tag == "dict" and isinstance(content, list) and _is_same_dict(content, wanted)
    if isinstance(data, list):
        if not isinstance(wanted, list | tuple) or len(wanted) != len(data):
            return False
        return all(equals(item, other) for item, other in zip(data, wanted, strict=True))
    if isinstance(data, bool) or isinstance(wanted, bool) or data is None or isinstance(data, str):
        return type(data) is type(wanted) and data == wanted
    return isinstance(wanted, int | float) and _is_close(data, wanted)


def _is_same_dict(pairs: list[Any], wanted: Any) -> bool:
    if not isinstance(wanted, Mapping) or len(pairs) != len(wanted):
        return False
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return False
    given = {key: value for key, value in pairs}
    return given.keys() == wanted.keys() and all(equals(given[key], value) for key, value in wanted.items())


def _is_close(given: float, wanted: float) -> bool:
    if isinstance(given, int) and isinstance(wanted, int):
        return given == wanted
    try:
        is_close = math.isclose(given, wanted, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:
        return False
    return is_close or (given != given and wanted != wanted)


def is_same_output(given: str, wanted: str) -> bool:
    """Return whether two outputs have the same words on the same lines; a wanted number with a point may differ.

    White space between words, at ends of lines and at the end does not count.
    """
    lines = [[line.split() for line in text.rstrip().splitlines()] for text in (given, wanted)]
    if [len(words) for words in lines[0]] != [len(words) for words in lines[1]]:
        return False
    pairs = (pair for row in zip(*lines, strict=True) for pair in zip(*row, strict=True))
    return all(word == other or _is_same_number(word, other) for word, other in pairs)


def _is_same_number(given: str, wanted: str) -> bool:
    if "." not in wanted:
        return False
    try:
        return _is_close(float(given), float(wanted))
    except ValueError:
        return False
