"""Texts as people see them: without signs that take no room, and with one spelling of what looks alike."""

from __future__ import annotations

import re
import unicodedata

_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters, marks and signs that Unicode counts as such and that show nothing."""
_RAISED = re.compile("([\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+)")
_FRACTION = re.compile("([\u00bc-\u00be\u2150-\u215f\u2189])")
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|`+)(?=[^\s*_`])([^*_`]+)(?<=\S)\1(?!\w)")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf)\s*\{([^{}]*)\}")
_MINUS_SIGNS = str.maketrans("\u2010\u2011\u2012\u2013\u2212", "-----")


def is_invisible(sign: str) -> bool:
    """Return whether one character shows nothing: blanks, zero-width and control characters, fillers, selectors."""
    category = unicodedata.category(sign)
    return (
        category[0] == "Z"
        or category in ("Cc", "Cf")
        or sign in _FILLERS
        or unicodedata.name(sign, "").startswith("VARIATION SELECTOR")
    )


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing at all."""
    return all(map(is_invisible, text))


def without_invisible_start(text: str) -> str:
    """Return a text from its first character that is no zero-width one; a byte order mark is such."""
    start = next((place for place, sign in enumerate(text) if unicodedata.category(sign) != "Cf"), len(text))
    return text[start:]


def without_format_signs(text: str) -> str:
    """Return a text without its zero-width characters."""
    if text.isascii():
        return text
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf")


def without_dress(text: str) -> str:
    r"""Return a text without marks of emphasis around words, and without ``\text{}``."""
    return _EMPHASIS.sub(r"\2", _TEXT.sub(r"\1", text))


def plain_text(text: str) -> str:
    """Return a text in Unicode's compatible form, without zero-width characters, in one case, with single blanks.

    A raised digit keeps that it is raised, and a fraction its distance to the number before, so that neither 10² is 102
    nor 3½ 31/2; every minus and short dash is the hyphen.
    """
    text = _RAISED.sub(r"^\1", text.translate(_MINUS_SIGNS))
    text = unicodedata.normalize("NFKC", _FRACTION.sub(r" \1", text)).replace("\u2044", "/")
    return " ".join(without_format_signs(text.translate(_MINUS_SIGNS)).casefold().split())
