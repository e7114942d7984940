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
_LINK = (
    r"(?:\s*\b(?:that|if|whether|to say|(?:is|be|equals?|equal to)|the (?:\w+ )?answer|(?:it|that"
    r"|this)(?:'s)?)(?![\w']))*"
    r"[\s:*$(\[\\]*$"
)
"""What may stand between a word that doubts and the answer: ``that the answer is``."""
_REFUSED_BEFORE = re.compile(
    r"(?i)(?:\b(?:not|cannot|never|neither|nor|anything but|(?:wrong|false|incorrect)(?=\s+(?:to say|that)))|n't)"
    r"(?!\s+(?:equal )?(?:is|equals)\b)"
    rf"(?:\s+(?:think|believe|say))?{_LINK}"
)
_GUESSED_BEFORE = re.compile(
    r"(?i)(?:\b(?:maybe|perhaps|possibly|probably|(?:is|it's|most|very) likely|(?:might|may|could) (?:it |that |also "
    r"|well )?be"
    r"|(?:i|my|i'm|i'd|best|would|wild)\s+guess(?:ing)?|(?:not|n't) (?:sure|certain)(?:,? but)?[,.]?(?: i think)?"
    rf"|(?<!no )(?<!without )(?<!without a )doubt),?|(?:^|\b(?:is|are)|[.!:\n])\s*"
    r"(?:at (?:least|most)|(?:more|less|fewer|greater) than|between -?\d[\d.]* and)"
    rf"|\b(?:suppos(?:e|ing)|assum(?:e|ing)|let's (?:try|say|suppose)|if it were|reject(?:ed)?|ruled? out)){_LINK}"
)
_REFUSED_BEHIND = re.compile(
    r"(?i)^[\s*$)\]\\.!,;-]*(?:(?:wait|hmm+|no|oh|oops|sorry|actually|but)\b[\s.,!]*)*"
    r"(?:(?:(?:that|this|it|which)(?:\s+is|'s|\s+was)?|is|was)\s+(?:\w+ly\s+)?(?:wrong|incorrect|false|mistaken"
    r"|too (?:small|large|big|low|high)|not\s+(?:right|correct|true|the\s+(?:right\s+|correct\s+|final\s+)?answer))"
    r"|(?:that|this|it|is)\s*(?:isn't|n't)\s+(?:right|correct|true)"
    r"|(?:(?:that|this|it|which)\s+)?(?:(?:can't|cannot|can not|could not|couldn't) be"
    r" (?:right|correct|true|the answer)"
    r"|(?:(?:is|was|would be) )?(?:wrong|impossible|not possible|a contradiction|absurd|excluded|ruled out)"
    r"|fails|(?:does not|doesn't|won't|will not|did not|didn't) (?:work|do|fit|hold))|nope|not?(?=[\s.!]*$)"
    r"|i made an? (?:mistake|error)"
    r"|(?:scratch|strike|forget) (?:that|it|this)|i (?:was wrong|take (?:that|it|this) back))\b(?!\s*\?)"
)
"""What says of an answer, before or behind it, that it is none."""
_ASKED_BEHIND = re.compile(
    r"(?i)^[\s*$)\]\\.]*\?(?!\s*(?:yes|yep|indeed|correct|right|exactly)\b)"
    r"|^[\s*$)\]\\,;(\u2014-]*(?:(?:or\s+(?:so|more(?! precisely)|less|fewer|higher|lower|greater|maybe|perhaps"
    r"|possibly)|at (?:most|least)|and (?:up|above|below))\b"
    r"|(?:maybe|perhaps|possibly|probably|i guess)[\s)]*(?:[.!,;?]|$|\n))"
    r"|^[\s*$)\]\\.!,;(-]*(?:i think,?\s*)?(?:(?:but|though|although)\s+)?(?:i'm |i am )?not (?:sure|certain)\b"
)
_VERDICT = r"(?:the|my) (?:(?:right|correct|real|actual|final) )*answer"
_AMOUNT = r"[\s:=*$(\\]*(-?\d[\d,.]*|(?-i:[A-H]))[\s*$)\\]*(?:[.!]|$|\n)"
_REPLACED_BEHIND = re.compile(
    r"(?i)^[\s*$)\]\\.!,;-]*(?:(?:wait|hmm+|no|oh|oops|sorry|actually|but|correction|edit|nope|i meant?|rather"
    r"|on (?:second thought|reflection))"
    rf"\b[\s.,:!]*)+(?:(?:it|that|this|{_VERDICT})(?:'s|\s+(?:is|was|must be|equals))?\s+)?"
    rf"(?:should be|make (?:it|that)|equals)?{_AMOUNT}"
)
"""Another number in the place of an answer that stands before: ``Actually, it's 43.``."""
_OTHER_BEHIND = re.compile(
    rf"(?i)^[\s*$)\]\\.!,;-]*(?:or\b|>|\u2192|(?:(?:so|therefore|thus|hence)\b[\s,]*)?{_VERDICT}(?:'s|\s+is)\b){_AMOUNT}"
)
"""Another number beside an answer that is a number: ``\\boxed{5} or 6``; ``\\boxed{\\frac12} or 0.5`` is one answer."""
_WHOLE = re.compile(r"-?\d[\d,]*")
_CONTEXT = 100


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


def is_refused(text: str, start: int, end: int, content: str) -> bool:
    """Return whether the words next to an answer, which is ``text[start:end]``, deny or doubt it, or take it back."""
    before = text[max(0, start - _CONTEXT) : start].replace("\u2019", "'")
    behind = text[end : end + _CONTEXT].replace("\u2019", "'")
    if _REFUSED_BEFORE.search(before) or _GUESSED_BEFORE.search(before):
        return True
    if _REFUSED_BEHIND.match(behind) or _ASKED_BEHIND.match(behind):
        return True
    bare = content.strip().strip("$")
    replaced, other = _REPLACED_BEHIND.match(behind), _OTHER_BEHIND.match(behind)
    if replaced is not None:
        return replaced[1].rstrip(".,") != bare
    if other is None or not all(_WHOLE.fullmatch(one) for one in (bare, other[1].rstrip(".,"))):
        return False
    return other[1].rstrip(".,").replace(",", "") != bare.replace(",", "")


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
