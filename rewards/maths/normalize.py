r"""The cheap side of answer checking: one spelling for numbers, units and words, and exact rational equality.

Nine answers of ten are decided here in microseconds, without a computer algebra system.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u00f7": "/",
        "\u2044": "/",
        "\u2019": "'",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u00b0": r"^\circ ",
        "\u2264": r"\leq ",
        "\u2265": r"\geq ",
        "\u2260": r"\neq ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2205": r"\emptyset ",
        "\u00b1": r"\pm ",
        **{digit: f"^{{{index}}}" for index, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z]|\([^()]*\))")
_SPACING = re.compile(r"(?<!\\)\\[,;:! ]|\\quad\b|\\qquad\b|~")
_WRAPPERS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname|textrm|mathit)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\\(?:left|right|displaystyle|bigl|bigr|Bigl|Bigr|big|Big)(?![a-zA-Z])")
_FRACTION_COMMAND = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_DIGIT_GROUPS = re.compile(r"(?<![\d.])\d{1,3}(?:[ ,]\d{3})+(?![\d,])")
_LONE_CURRENCY = re.compile(r"^([-+]?)\s*(?:\\?\$|€|£|¥)\s*(?=[-+.\d])")
_UNEQUAL = re.compile(r"(?<=\s)!=")
"""With a blank before it; ``3!=6`` is a factorial."""
_LISTED = re.compile(r"\s*(?:,|;|\band\b|\bor\b)\s*")
_ASSIGNMENT = re.compile(r"^[a-zA-Z](?:_\{?\w+\}?|\(\w\))?\s*=\s*(?=[^=]+$)")

_DIGITS = r"(?:\d+\.?\d*|\.\d+)"
_NUMBER = re.compile(rf"^([-+]?){_DIGITS}$")
_RATIO = re.compile(rf"^([-+]*)\(?({_DIGITS})\)?/\(?([-+]?{_DIGITS})\)?$")
_FRAC = re.compile(rf"^([-+]?)\\frac(?:\{{([-+]?{_DIGITS})\}}|(\d))\s*(?:\{{([-+]?{_DIGITS})\}}|(\d))$")
_MIXED = re.compile(r"^([-+]?)(\d+)(?: |)\\frac\{(\d+)\}\{(\d+)\}$|^([-+]?)(\d+) (\d+)/(\d+)$")
_SCIENTIFIC = re.compile(
    rf"^([-+]?{_DIGITS})(?:[eE]|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*)(?:\{{\s*([-+]?\d{{1,3}})\s*\}}|([-+]?\d{{1,3}}))$"
)
_REPEATING = re.compile(r"^([-+]?)(\d*)\.(\d*)\\overline\{(\d+)\}$")
_UNIT = re.compile(r"^(.*?[\d})])\s*([a-zA-Z][a-zA-Z.\s/]*(?:\^\{?\d\}?)?|\^\s*\{?\s*\\circ\s*\}?\s*[CF]?)$")
_MAX_NUMBER_LENGTH = 400

_SHORT_WORDS = {"no", "ok", "up", "on"}
"""Answers in words that are too short to be told from a product of variables."""
_UNIT_SPELLINGS = """
    mm millimeter millimeters millimetre millimetres; cm centimeter centimeters centimetre centimetres;
    m meter meters metre metres; km kilometer kilometers kilometre kilometres;
    in inch inches; ft foot feet; yd yard yards; mi mile miles; mph;
    mg milligram milligrams; g gram grams; kg kilogram kilograms; lb lbs pound pounds; oz ounce ounces;
    ml milliliter milliliters; l liter liters litre litres;
    s sec secs second seconds; min mins minute minutes; h hr hrs hour hours; day days; week weeks; month months;
    year years; am a.m.; pm p.m.; cent cents; dollar dollars usd; degree degrees deg; radian radians rad
"""
_UNITS = {name: names.split()[0] for names in _UNIT_SPELLINGS.split(";") for name in names.split()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Normal:
    """An answer in one spelling."""

    text: str
    """LaTeX without decoration; what a parser is given."""
    value: Fraction | None
    """Where the answer is one rational number (a percentage is a hundredth)."""
    unit: str | None
    """A unit of measure that is known by name, with its power; None for none or for a counted noun."""
    is_percent: bool
    word: str | None
    """Lower-case, where the answer is words rather than mathematics."""


def normalize(answer: str) -> Normal:
    """Return an answer in one spelling: Unicode, spacing, decoration, digit groups, currency, units, percent."""
    text = _clean(answer)
    if (plain := parse_number(text)) is not None:
        return Normal(text=text, value=plain, unit=None, is_percent=False, word=None)
    body, percent = (text[:-1].rstrip("\\ "), True) if text.endswith("%") else (text, False)
    unit = None
    if not percent and (match := _UNIT.match(body)):
        spelled, power = match[2].strip().rstrip("."), ""
        if "^" in spelled and "circ" not in spelled:
            spelled, _, power = spelled.partition("^")
        name = "degree" if "circ" in spelled else spelled.strip().lower()
        value = parse_number(match[1].strip())
        if value is not None and (len(name) > 1 or name in _UNITS) and name not in ("e", "i"):
            unit = _UNITS[name] + power.strip("{} ") if name in _UNITS else None
            return Normal(text=match[1].strip(), value=value, unit=unit, is_percent=False, word=None)
    value = parse_number(_ASSIGNMENT.sub("", body)) if not percent else parse_number(body)
    if value is not None and percent:
        value /= 100
    return Normal(text=text, value=value, unit=unit, is_percent=percent, word=_as_word(text))


def parse_number(text: str) -> Fraction | None:
    r"""Return the rational value of ``-.5``, ``6/16``, ``\frac38``, ``2 1/3``, ``3\times10^5``, ``0.\overline{3}``."""
    text = text.strip()
    if not text or len(text) > _MAX_NUMBER_LENGTH:
        return None
    if _NUMBER.match(text):
        return Fraction(text.lstrip("+"))
    if match := _RATIO.match(text):
        return _ratio(_sign(match[1]), match[2], match[3])
    if match := _FRAC.match(text):
        return _ratio(_sign(match[1]), match[2] or match[3], match[4] or match[5])
    if match := _MIXED.match(text):
        sign, whole, top, bottom = (match[1], match[2], match[3], match[4]) if match[2] else match.groups()[4:]
        part = _ratio(1, top, bottom)
        return None if part is None else _sign(sign) * (int(whole) + part)
    if match := _SCIENTIFIC.match(text):
        return Fraction(match[1].lstrip("+")) * Fraction(10) ** int(match[2] or match[3])
    if match := _REPEATING.match(text):
        whole, fixed, period = match[2] or "0", match[3], match[4]
        scale = 10 ** len(fixed)
        value = Fraction(int(whole + fixed), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
        return _sign(match[1]) * value
    return None


def _clean(answer: str) -> str:
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), answer)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1].strip('()')}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
    text = _strip_dollars(text.strip())
    text = _UNEQUAL.sub(r"\\neq ", text)
    text = text.replace("{,}", ",").replace(r"\%", "%").replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=\d)\\[,!](?=\d{3}(?!\d))", "", text)
    text = _DECORATION.sub("", _SPACING.sub(" ", text))
    text = _WRAPPERS.sub(lambda match: f" {match[1].strip()} ", text)
    text = _FRACTION_COMMAND.sub(r"\\frac", text)
    text = " ".join(text.split()).rstrip(".;,").rstrip()
    while len(text) > 2 and text[0] == "{" and text[-1] == "}" and "{" not in text[1:-1]:
        text = text[1:-1].strip()
    text = _LONE_CURRENCY.sub(r"\1", text)
    return _as_list(_DIGIT_GROUPS.sub(lambda match: _joined_digits(match, text), text))


def _joined_digits(match: re.Match[str], text: str) -> str:
    """Return a number without its thousands separators; in brackets a comma is between two numbers: ``(12,102)``."""
    before = text[: match.start()]
    opened, closed = (sum(map(before.count, signs)) for signs in (("(", "[", r"\{"), (")", "]", r"\}")))
    if opened > closed and "," in match[0]:
        return match[0]
    return match[0].replace(",", "").replace(" ", "")


def _as_list(text: str) -> str:
    """Return ``1 and -2`` as ``1, -2``, where every piece is a number; words stay as they are."""
    if " and " not in text and " or " not in text:
        return text
    pieces = _LISTED.split(text)
    return ", ".join(pieces) if all(parse_number(piece) is not None for piece in pieces) else text


def _strip_dollars(text: str) -> str:
    r"""Return the text inside ``$…$``, ``$$…$$`` or ``\(…\)``; a lone dollar sign is money and stays."""
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        stripped = text.rstrip(". ")
        if len(stripped) > len(opening) + len(closing) and stripped.startswith(opening) and stripped.endswith(closing):
            return stripped[len(opening) : -len(closing)].strip()
    return text


def _as_word(text: str) -> str | None:
    """Return lower-case words, or a letter that is a choice (``(C)``); None for mathematics."""
    bare = text.strip("()[]*\"'.: ")
    if re.fullmatch(r"[A-Z]", bare) and bare != text:
        return bare.lower()
    is_wordy = re.search(r"[^\W\d_]{3}", bare) or bare.lower() in _SHORT_WORDS
    if not is_wordy or re.search(r"[\\^_{}=<>+|]", bare):
        return None
    return " ".join(re.sub(r"[^\w\s/:'-]", " ", bare).lower().split())


def _sign(signs: str) -> int:
    return -1 if signs.count("-") % 2 else 1


def _ratio(sign: int, top: str, bottom: str) -> Fraction | None:
    denominator = Fraction(bottom.lstrip("+"))
    return sign * Fraction(top.lstrip("+")) / denominator if denominator else None
