r"""Equality as the published MATH tables have it: of spellings, after a fixed tidying; no mathematics.

``3, 5, 7`` and ``3, 7, 5``, ``\frac{3}{24}`` and ``\frac{1}{8}``, ``\text{east}`` and ``east`` are different here. Only
for figures that are to stand beside published ones.
"""

from __future__ import annotations

import re

_REPLACED = (
    ("\n", ""),
    (r"\!", ""),
    (r"\\", "\\"),
    (r"\tfrac", r"\frac"),
    (r"\dfrac", r"\frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\$", ""),
    (r"\%", ""),
    ("%", ""),
    (" .", " 0."),
    ("{.", "{0."),
)
_BARE_ROOT = re.compile(r"\\sqrt(?=[^{\s])(.)")
_BARE_FRACTION = re.compile(r"\\frac([^{\\])(?:([^{\\])|(?=\{))")
_INTEGER_RATIO = re.compile(r"^(-?\d+)/(-?\d+)$")
_SHORT_NAME = re.compile(r"^[^=]{1,2}=([^=]*)$")
_NUMBER = re.compile(r"^-?\d+(?:\.\d*)?$")


def are_spelt_alike(given: str, wanted: str) -> bool:
    """Return whether two answers are one spelling, or two spellings of one decimal number (GSM8K's ``18.0``)."""
    first, second = tidy(given), tidy(wanted)
    if first == second:
        return True
    numbers = [text.replace(",", "") for text in (first, second)]
    return all(_NUMBER.match(text) for text in numbers) and float(numbers[0]) == float(numbers[1])


def tidy(answer: str) -> str:
    """Return an answer in the spelling that MATH's own comparison reduces it to (arXiv 2103.03874)."""
    text = answer
    for old, new in _REPLACED:
        text = text.replace(old, new)
    text = text.partition(r"\text{ ")[0].strip()
    if text.startswith("."):
        text = f"0{text}"
    text = _SHORT_NAME.sub(lambda match: match[1], text.replace(" ", ""))
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _BARE_FRACTION.sub(
        lambda match: rf"\frac{{{match[1]}}}{{{match[2]}}}" if match[2] else rf"\frac{{{match[1]}}}", text
    )
    if text == "0.5":
        return r"\frac{1}{2}"
    return _INTEGER_RATIO.sub(r"\\frac{\1}{\2}", text)
