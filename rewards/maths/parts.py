r"""Answers of several parts: ``3 and 5``, ``x=3 or x=5``, ``\{3, 5\}``, ``\pm 2``, ``9 chickens and 10 rabbits``.

The parts are found outside brackets, and paired by what they are called where both sides call them alike, by their
order where only the gold answer, or both in other words, name them, and else in any order: all of them, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from unigrpo.rewards.maths.normalize import Normal, normalize

MAX_PARTS = 16

_SEPARATOR = re.compile(
    r"(?P<open>\\\{|[({\[])|(?P<close>\\\}|[)}\]])"
    r"|(?P<grouped>(?<=\d),(?=\d{3}(?!\d)))"
    r"|(?P<cut>\s*(?:[,;]\s*(?:(?:and|or)(?![a-zA-Z]))?|(?<![a-zA-Z])(?:and|or|&)(?![a-zA-Z]))\s*)"
)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])[^{}]*)\}")
_FORMULA = re.compile(r"\$([^$]+)\$(?!\d)|\\\((.{1,200}?)\\\)")
_SET = re.compile(r"^\s*\\?\{(.*?)\\?\}\s*$", re.DOTALL)
_EITHER = re.compile(r"^\s*(?:either|both)\s+", re.IGNORECASE)
_SIGNED = re.compile(r"\\pm(?![a-zA-Z])|±")

SamePart = Callable[[Normal, Normal], float | None]
"""Whether two parts are one: 1, 0, or None where only mathematics can tell."""


def split_parts(answer: str) -> list[str]:
    """Return the parts of an answer, at least one; a sign of plus or minus makes two of one."""
    text = _FORMULA.sub(lambda match: match[1] or match[2], _WORDS.sub(r" \1 ", answer)).strip().strip("$").strip()
    if (inside := _SET.match(text)) and text.startswith("\\{"):
        text = inside[1]
    pieces = [piece for piece in _cut(_EITHER.sub("", text)) if piece]
    return [signed for piece in pieces for signed in _signed(piece)] or [answer]


def have_same_parts(given: Sequence[str], wanted: Sequence[str], same: SamePart) -> bool | None:
    """Return whether two lists hold the same parts; None where mathematics has to tell.

    Args:
        given: the parts of an answer.
        wanted: those of the gold answer.
        same: how two parts are compared.
    """
    if len(given) > MAX_PARTS or len(wanted) > MAX_PARTS:
        return None
    sides = [_distinct([normalize(part) for part in parts], same) for parts in (given, wanted)]
    if any(part.value is None and part.word is None for side in sides for part in side):
        return None
    if len(sides[0]) != len(sides[1]):
        return False
    first, second = _paired(*sides)
    if first is None:
        return _is_matched(sides[0], sides[1], same)
    return all(same(one, other) == 1.0 for one, other in zip(first, second, strict=True))


def _paired(given: list[Normal], wanted: list[Normal]) -> tuple[list[Normal] | None, list[Normal]]:
    """Return both lists in the order in which they are compared; None for the first where any order will do."""
    names = [[_called(part) for part in side] for side in (given, wanted)]
    if not _tell_apart(names[1]):
        return None, wanted
    if _tell_apart(names[0]) and set(names[0]) == set(names[1]):
        return [given[names[0].index(name)] for name in names[1]], wanted
    return given, wanted


def _called(part: Normal) -> str | None:
    """Return what a part is called, without the ending of the plural."""
    return None if part.name is None else (part.name if len(part.name) < 4 else part.name.removesuffix("s"))


def _tell_apart(names: Sequence[str | None]) -> bool:
    return None not in names and len(set(names)) == len(names)


def _is_matched(given: Sequence[Normal], wanted: Sequence[Normal], same: SamePart) -> bool:
    left = list(given)
    for part in wanted:
        match = next((other for other in left if same(other, part) == 1.0), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _distinct(parts: Sequence[Normal], same: SamePart) -> list[Normal]:
    kept: list[Normal] = []
    for part in parts:
        if not any(_called(part) == _called(other) and same(part, other) == 1.0 for other in kept):
            kept.append(part)
    return kept


def _cut(text: str) -> list[str]:
    pieces, start, depth = [], 0, 0
    for match in _SEPARATOR.finditer(text):
        depth = max(depth + (match.lastgroup == "open") - (match.lastgroup == "close"), 0)
        if match.lastgroup == "cut" and depth == 0:
            pieces.append(text[start : match.start()].strip())
            start = match.end()
    return [*pieces, text[start:].strip()]


def _signed(part: str) -> list[str]:
    if len(_SIGNED.findall(part)) != 1:
        return [part]
    return [re.sub(r"([-+])\s+", r"\1", _SIGNED.sub(f" {sign}", part)).strip() for sign in "+-"]
