r"""The boxes of a text, ``\boxed{5}``, ``\fbox{5}`` or ``\boxed 5``: the last one decides, and only if it is closed.

A box that the end of the text cuts off says nothing, and hides what stood before: a policy that corrects itself must
not be paid for what it takes back. Boxes that only ``and``, ``or`` or a comma joins are one answer:
``\boxed{3} or \boxed{5}`` leaves open which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from unigrpo.rewards.text.refusals import is_refused

MAX_BOXES = 8
"""Boxes that one answer may be spread over; of more, the last decides alone."""

_BRACE_OR_ESCAPE = re.compile(r"\\[{}\\]|[{}]")
_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])|boxed(?=[ \t\n]*\{)")
"""Policies drop the backslash of ``\\boxed{}`` now and then; braces tell it from prose."""
_LATEX_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_JOINT = re.compile(r"(?i)[,;]|\b(?:and|or)\b")
_JOINING_WORDS = {"and", "or", "either", "also", "both"}
_MAX_JOINT_LENGTH = 40
_REVISION = re.compile(
    r"(?i)\b(?:wait|actually|correct\w*|no|not|instead|rather|mistake|wrong|check\w*|again|hmm|sorry|oops)\b"
)
_MAX_BARE_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Boxes:
    """What the boxes of a text say in the end."""

    answer: str | None
    """The last box, or the last few where they are joined; None where the last one is cut off."""
    asked: tuple[str, ...] = ()
    """All boxes, where they are two to ``MAX_BOXES`` and none takes back another: for a question of several parts."""


@dataclass(frozen=True, slots=True)
class _Box:
    content: str
    start: int
    end: int


def read_boxes(text: str) -> Boxes | None:
    """Return what the boxes of a text say; None where there is none.

    One pass pairs all braces (escaped ones do not count), so that 20,000 unclosed boxes cost no more than one.
    """
    commands = [(match.start(), match.end()) for match in _COMMAND.finditer(text)]
    if not commands:
        return None
    closing, unclosed = _paired_braces(text, commands[0][0])
    boxes: list[_Box] = []
    for start, end in reversed(commands):
        opening = _after_blanks(text, end)
        if opening == len(text) or opening in unclosed:
            if not boxes:
                return Boxes(None)
            if _is_around(text, opening + 1, boxes[-1].start):
                return Boxes(None)  # `\boxed{\boxed{5}`: the closed one is only the inner of two.
            break
        if boxes and closing.get(opening, opening) > boxes[-1].start:
            continue  # Around a box that is read already.
        box = _read_box(text, start, opening, closing)
        if box is not None:
            boxes.append(box)
        if len(boxes) > MAX_BOXES:
            break
    boxes.reverse()
    if boxes and is_refused(text, boxes[-1].start, boxes[-1].end, boxes[-1].content):
        return Boxes(None)
    return Boxes(_joined(text, boxes), _asked(text, boxes)) if boxes else None


def last_boxed(text: str) -> str | None:
    """Return what the last box holds, or the last few where they are joined; None without one, or if it is cut off."""
    boxes = read_boxes(text)
    return boxes.answer if boxes is not None else None


def _read_box(text: str, start: int, opening: int, closing: dict[int, int]) -> _Box | None:
    """Return the box of a command whose braces are closed, or that has none; None where it is only spoken of."""
    if opening in closing:
        return _Box(text[opening + 1 : closing[opening]], start, closing[opening] + 1)
    words = text[opening : opening + _MAX_BARE_LENGTH].split(maxsplit=1)
    word = words[0].rstrip(".$,;`\"'") if words else ""
    is_cut_off = word.count("{") > word.count("}")
    return _Box("" if is_cut_off else word, start, opening + len(word)) if word else None


def _joined(text: str, boxes: Sequence[_Box]) -> str:
    """Return the last box with those that are joined to it, each content once."""
    contents, is_open = [boxes[-1].content.strip()], False
    for box, following in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        joint = text[box.end : following.start]
        words = set(_WORD.findall(_LATEX_COMMAND.sub(" ", joint).lower()))
        if len(joint) > _MAX_JOINT_LENGTH or not _JOINT.search(joint) or not words <= _JOINING_WORDS:
            break
        is_open = is_open or "or" in words
        contents.append(box.content.strip())
    contents = list(dict.fromkeys(reversed(contents)))
    return contents[0] if len(contents) == 1 else (" or " if is_open else ", ").join(contents)


def _asked(text: str, boxes: Sequence[_Box]) -> tuple[str, ...]:
    """Return the contents of all boxes, each once, if there are several and no words between them take one back."""
    contents = tuple(dict.fromkeys(box.content.strip() for box in boxes))
    gaps = [text[box.end : following.start] for box, following in pairwise(boxes)]
    if not 2 <= len(contents) <= MAX_BOXES or any(_REVISION.search(gap) for gap in gaps):
        return ()
    return contents


def _is_around(text: str, start: int, end: int) -> bool:
    """Return whether an open box goes on up to an inner one, rather than having been left for words and a new one."""
    between = text[start:end]
    return len(between) <= _MAX_BARE_LENGTH and _WORD.search(_LATEX_COMMAND.sub(" ", between)) is None


def _after_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n":
        position += 1
    return position


def _paired_braces(text: str, start: int) -> tuple[dict[int, int], set[int]]:
    """Return opening index -> index of its closing brace, and the indices of braces that are never closed."""
    closing: dict[int, int] = {}
    open_braces: list[int] = []
    for match in _BRACE_OR_ESCAPE.finditer(text, start):
        if match.group() == "{":
            open_braces.append(match.start())
        elif match.group() == "}" and open_braces:
            closing[open_braces.pop()] = match.start()
    return closing, set(open_braces)
