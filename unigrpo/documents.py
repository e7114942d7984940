"""JSON that somebody else wrote: numbers that JSON knows, a bounded depth, no file that cannot be read to its end."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unigrpo.errors import UserError
from unigrpo.files import usable

MAX_DEPTH = 100
"""Lists and objects inside one another. No format that is read here goes beyond ten; Python's own limit is met at about
a thousand, by whoever walks the value next."""
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not UTF-8 or not JSON, holds NaN or Infinity, or is nested deeper than ``MAX_DEPTH``.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON; write null")


def is_deep(value: Any) -> bool:
    """Return whether lists and mappings lie deeper inside one another than ``MAX_DEPTH``."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = list({id(part): part for one in level for part in _parts(one)}.values())  # an alias of YAML once
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_object(path: Path, way_out: str = "") -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: naming the file, if it is no regular file, cannot be read or holds no JSON object; with the way out.
    """
    with usable(path):
        is_regular = stat.S_ISREG(path.stat().st_mode)
        content = path.read_bytes() if is_regular else b""
    if not is_regular:
        raise UserError(f"{path} is no file{way_out and f'; {way_out}'}")
    try:
        value = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}){way_out and f'; {way_out}'}") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise UserError(f"{path} holds a JSON {found}; wanted an object with named values{way_out and f'; {way_out}'}")
    return value
