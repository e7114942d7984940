"""What the words beside a marked answer say of it: whether they deny or doubt it, or put another in its place.

Only what stands next to a box, ``<answer>`` or the line behind ``####`` is read, sixty characters before and a hundred
behind, in English; the patterns are lists of words and know no more than these.
"""

from __future__ import annotations

import re

_BEFORE, _BEHIND = 60, 100
"""Characters before and behind an answer that are read."""
_LINK = (
    r"(?:\s*\b(?:that|if|whether|to say|(?:is|be|equals?|equal to)|the (?:\w+ )?answer|(?:it|that"
    r"|this)(?:'s)?)(?![\w']))*"
    r"[\s:*$(\[\\]*$"
)
"""What may stand between a word that doubts and the answer: ``that the answer is``."""
_SIGNS = r"(?i)^[\s*$)\]\\.!,;-]*"
"""What may stand between the answer and the words behind it."""

_DENIED_BEFORE = re.compile(
    r"(?i)(?:\b(?:not|cannot|never|neither|nor|anything but|(?:wrong|false|incorrect)(?=\s+(?:to say|that)))|n't)"
    r"(?!\s+(?:equal )?(?:is|equals)\b)"
    rf"(?:\s+(?:think|believe|say))?{_LINK}"
)
_DOUBTED_BEFORE = re.compile(
    r"(?i)(?:\b(?:maybe|perhaps|possibly|probably|(?:is|it's|most|very) likely"
    r"|(?:might|may|could) (?:it |that |also |well )?be"
    r"|(?:i|my|i'm|i'd|best|would|wild)\s+guess(?:ing)?|(?:not|n't) (?:sure|certain)(?:,? but)?[,.]?(?: i think)?"
    r"|(?<!no )(?<!without )(?<!without a )doubt),?"
    r"|(?:^|\b(?:is|are)|[.!:\n])\s*(?:at (?:least|most)|(?:more|less|fewer|greater) than|between -?\d[\d.]* and)"
    rf"|\b(?:suppos(?:e|ing)|assum(?:e|ing)|let's (?:try|say|suppose)|if it were|reject(?:ed)?|ruled? out)){_LINK}"
)
_RIGHT = r"(?:right|correct|true|the\s+(?:right\s+|correct\s+|final\s+)?answer)"
_DENIED_BEHIND = re.compile(
    rf"{_SIGNS}(?:(?:wait|hmm+|no|oh|oops|sorry|actually|but)\b[\s.,!]*)*"
    r"(?:(?:that|this|it|which)?\s*(?:"
    r"(?:is|was|would be|'s)\s+(?:\w+ly\s+)?(?:wrong|incorrect|false|mistaken|a contradiction|excluded|ruled out"
    rf"|(?:impossible|not possible|absurd)(?!\s+(?:to|for|that)\b)|too (?:small|large|big|low|high)|not\s+{_RIGHT})"
    rf"|isn't\s+{_RIGHT}|(?:can't|cannot|can not|could not|couldn't) be {_RIGHT}"
    r"|fails|(?:does not|doesn't|won't|will not|did not|didn't) (?:work|do|fit|hold))"
    r"|nope|not?(?=[\s.!]*$)|i made an? (?:mistake|error)"
    r"|(?:scratch|strike|forget) (?:that|it|this)|i (?:was wrong|take (?:that|it|this) back))\b(?!\s*\?)"
)
_DOUBTED_BEHIND = re.compile(
    r"(?i)^[\s*$)\]\\.]*\?(?!\s*(?:yes|yep|indeed|correct|right|exactly)\b)"
    r"|^[\s*$)\]\\,;(\u2014-]*(?:(?:or\s+(?:so|more(?! precisely)|less|fewer|higher|lower|greater|maybe|perhaps"
    r"|possibly)|at (?:most|least)|and (?:up|above|below))\b"
    r"|(?:maybe|perhaps|possibly|probably|i guess)[\s)]*(?:[.!,;?]|$|\n))"
    r"|^[\s*$)\]\\.!,;(-]*(?:i think,?\s*)?(?:(?:but|though|although)\s+)?(?:i'm |i am )?not (?:sure|certain)\b"
)
_SAID = r"(?:the|my) (?:(?:right|correct|real|actual|final) )*answer"
_OTHER = r"[\s:=*$(\\]*(-?\d[\d,.]*|(?-i:[A-H]))[\s*$)\\]*(?:[.!]|$|\n)"
_REPLACED_BEHIND = re.compile(
    rf"{_SIGNS}(?:(?:wait|hmm+|no|oh|oops|sorry|actually|but|correction|edit|nope|i meant?|rather"
    r"|on (?:second thought|reflection))\b[\s.,:!]*)+"
    rf"(?:(?:it|that|this|{_SAID})(?:'s|\s+(?:is|was|must be|equals))?\s+)?"
    rf"(?:should be|make (?:it|that)|equals)?{_OTHER}"
)
"""Another number or letter, behind a word that takes back: ``Actually, it's 43.``."""
_BESIDE = re.compile(
    rf"{_SIGNS}(?:or\b|(?<=-)>|\u2192|(?:(?:so|therefore|thus|hence)\b[\s,]*)?{_SAID}(?:'s|\s+is)\b){_OTHER}"
)
"""Another number without such a word. It counts beside a whole number: ``\\boxed{\\frac12} or 0.5`` is one answer."""
_WHOLE = re.compile(r"-?\d+")


def is_refused(text: str, start: int, end: int, content: str) -> bool:
    """Return whether the words next to an answer deny or doubt it, or say another one.

    Args:
        text: all that a completion says.
        start: where the marked answer begins, its mark included.
        end: where it ends.
        content: the answer without its mark.
    """
    before = text[max(0, start - _BEFORE) : start].replace("\u2019", "'")
    behind = text[end : end + _BEHIND].replace("\u2019", "'")
    if _DENIED_BEFORE.search(before) or _DOUBTED_BEFORE.search(before):
        return True
    if _DENIED_BEHIND.match(behind) or _DOUBTED_BEHIND.match(behind):
        return True
    answer = content.strip().strip("$").replace(",", "")
    if replaced := _REPLACED_BEHIND.match(behind):
        return _plain(replaced[1]) != answer
    other = _BESIDE.match(behind)
    if other is None or not _WHOLE.fullmatch(answer):
        return False
    return _WHOLE.fullmatch(_plain(other[1])) is not None and _plain(other[1]) != answer


def _plain(number: str) -> str:
    return number.rstrip(".,").replace(",", "")
