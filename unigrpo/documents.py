"""JSON that somebody else wrote: numbers that JSON knows, a bounded depth, no file that cannot be read to its end."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from unigrpo.errors import UserError
from unigrpo.files import open_regular
from unigrpo.sanitized import short_repr

MAX_DEPTH = 100
"""Lists and objects inside one another. No format that is read here goes beyond ten; Python's own limit is met at about
a thousand, by whoever walks the value next."""
TOO_DEEP = f"more than {MAX_DEPTH} lists and objects within each other; write the value flatter, or as text"
_HALF = re.compile(r"[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, each number, text, list and object as it stands there.

    Raises:
        UserError: it is not UTF-8 or not JSON (NaN and Infinity are none), an object has a key twice, a number is
            beyond what a float holds or has more digits than Python reads, or more than ``MAX_DEPTH`` lists and objects
            lie within each other.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise UserError(TOO_DEEP) from None
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"not JSON: byte {error.start} (0x{error.object[error.start]:02x}) is not utf-8") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc.rstrip() else ""
        said = error.msg[:1].lower() + error.msg[1:].removesuffix(" at").removesuffix(" starting")
        raise UserError(f"not JSON: {said} ({line}character {error.colno})") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
        raise UserError(TOO_DEEP)
    return value


def is_deep(value: Any) -> bool:
    """Return whether more than ``MAX_DEPTH`` lists and mappings lie within each other."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = list({id(part): part for one in level for part in _parts(one)}.values())  # an alias of YAML once
        if not level:
            return False
    return any(isinstance(one, Mapping | list | tuple) for one in level)


def half_problem(value: Any) -> str | None:
    r"""Return where a value has a lone surrogate, half of a character that JSON writes as two escapes; None: nowhere.

    No file and no tokenizer takes one. ``value`` is at most ``MAX_DEPTH`` deep; names within it are looked at, too.
    """
    if isinstance(value, str):
        found = _HALF.search(value)
        return found and f"{ascii(found[0])[1:-1]} at character {found.start()}, half of a character; mend it"
    names = value if isinstance(value, Mapping) else ()
    return next((problem for part in (*names, *_parts(value)) if (problem := half_problem(part))), None)


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise UserError(f"the key {short_repr(twice)} stands twice in one object; leave one")
    return found


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # so many digits would take long to read: Python has a limit
        count = len(text.lstrip("-"))
        raise UserError(f"the number {text[:40]}... has {count:,} digits, too many; write it as text") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UserError(f"the number {text[:40]} is beyond what a float holds; write it as text")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise UserError(f"not JSON: {name}; write null, or leave the value out")


def read_object(path: Path, way_out: str = "") -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: naming the file, if it is no regular file, cannot be read or holds no JSON object; with the way out.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        value = parse_json(content)
    except UserError as error:
        raise UserError(f"{path}: {error}{way_out and f'; {way_out}'}") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise UserError(f"{path} holds a JSON {found}; wanted an object with named values{way_out and f'; {way_out}'}")
    return value
