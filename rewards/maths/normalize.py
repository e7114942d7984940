r"""The cheap side of answer checking: one spelling for numbers, units and words, and exact rational equality.

Nine answers of ten are decided here in microseconds, without a computer algebra system.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from unigrpo.rewards.maths.number_words import NUMBER_WORD, NUMBER_WORDS
from unigrpo.rewards.maths.tolerance import last_digit
from unigrpo.rewards.maths.units import currency_of, unit_of

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
        "\u2208": r"\in ",
        "\u2264": r"\leq ",
        "\u2265": r"\geq ",
        "\u2260": r"\neq ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2205": r"\emptyset ",
        "\u00b1": r"\pm ",
        "\u2026": r"\ldots ",
    }
)
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z]|\([^()]*\))")
_SPACING = re.compile(r"(?<!\\)\\[,;:!> ]|\\(?:quad|qquad|thinspace|enspace|space)(?![a-zA-Z])|~")
_WRAPPER = (
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mbox|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm"
    r"|operatorname|underline)\s*"
)
_WRAPPERS = re.compile(_WRAPPER + r"\{([^{}]*)\}")
_WRAPPER_OF_GROUPS = re.compile(_WRAPPER + r"(?=\{)")
_WORDS_ONLY = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|emph|mbox|mathrm|operatorname)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![\w)}\]*])(\*\*|__)(?=[^\s*_])(.+?)(?<=[^\s*_])\1(?![\w({*])")
_WHOLE_EMPHASIS = re.compile(r"^([*_])([^*_]+)\1$")
_DECORATION = re.compile(
    r"\\(?:left|right|displaystyle|bigl|bigr|Bigl|Bigr|big|Big|small|normalsize|large|Large|LARGE|huge|Huge)(?![a-zA-Z])"
    r"|\\(?:text)?color\s*\{\w+\}"
)
_SIGN_IN_WORDS = re.compile(r"(?i)(?<![a-z])(?:minus|negative)\s+(?=\\?\$?\d)")
_SCALED = re.compile(
    r"(?i)(?<![\w.,/^])(\d{1,12}(?:,\d{3})*(?:\.\d{1,12})?)\s+(hundred|thousand|million|billion|trillion)\b"
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SAID_IN_WORDS = re.compile(rf"(?i)(?<=\bis ){NUMBER_WORD}(?=(?: [a-z]+)?[\s.!*]*$)")
_BLANK_BETWEEN_DIGITS = re.compile(r"(?<=\d) (?=\d)")
_FRACTION_COMMAND = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_DIGIT_GROUPS = re.compile(r"(?<![\d.])\d{1,3}(?:[ ,]\d{3})+(?![\d,])")
_LONE_CURRENCY = re.compile(r"^([-+]?)\s*(?:US\s*)?(?:\\?\$|[€£¥₹₩]|Rs\.?)\s*(?=[-+.\d]|\\frac)")
_CURRENCY_BEHIND = re.compile(r"(?<=[\d})])\s*(?:\\?\$|[€£¥₹₩])$")
_PERCENT = re.compile(r"(?<=[\d})])\s*(?:percent|per cent)$")
_ELLIPSIS = re.compile(r"\\(?:ldots|dots|cdots|dotsc|dotso)(?![a-zA-Z])|(?<!\.)\.\.\.(?!\.)")
_UNEQUAL = re.compile(r"(?<=\s)!=")
"""With a blank before it; ``3!=6`` is a factorial."""
_LISTED = re.compile(r"\s*(?:,|;|\band\b|\bor\b)\s*")
_ASSIGNMENT = re.compile(
    r"^(?:(?:\\angle |\\triangle )?[A-Z]{2,4}|\\?[a-zA-Z](?:_\{?\w+\}?)?'?(?:\s*\([^()=]{1,20}\))?"
    r"|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|angle)(?: [A-Z]{1,3})?|[A-Za-z]{3,}(?: [A-Za-z]+){0,4})?"
    r"\s*=\s*(?=[^=]+$)"
)
"""A name before ``=``: a letter, a function of it, a segment, an angle or words; or none."""

_DIGITS = r"(?:\d+\.?\d*|\.\d+)"
_PLAIN_NUMBER = re.compile(r"[0-9]{1,200}(?:\.[0-9]{1,100})?")
"""Most answers; nothing about them needs tidying."""
_NUMBER = re.compile(rf"^([-+]?){_DIGITS}$")
_RATIO = re.compile(rf"^([-+]*)\(?({_DIGITS})\)?/\(?([-+]?{_DIGITS})\)?$")
_FRAC = re.compile(rf"^([-+]?)\\frac(?:\{{([-+]?{_DIGITS})\}}|(\d))\s*(?:\{{([-+]?{_DIGITS})\}}|(\d))$")
_MIXED = re.compile(r"^([-+]?)(\d+)(?: |)\\frac\{(\d+)\}\{(\d+)\}$|^([-+]?)(\d+) (\d+)/(\d+)$")
_SCIENTIFIC = re.compile(
    rf"^([-+]?{_DIGITS})(?:[eE]|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*)(?:\{{\s*([-+]?\d{{1,3}})\s*\}}|([-+]?\d{{1,3}}))$"
)
_POWER_OF_TEN = re.compile(r"^([-+]?)10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|(\d{1,3}))$")
_REPEATING = re.compile(
    r"^([-+]?)(\d*)\.(?:(\d{0,100})\\overline\{(\d{1,100})\}|(\d{0,9}?)(\d{1,6}?)\6{1,100}\s*\\ldots)$"
)
"""``0.1\\overline{6}``, and ``0.1666...``, whose last digits are there twice at least."""
_UNIT = re.compile(
    r"^(.*?[\d})])\s*((?:[a-zA-Z]|\\cdot(?![a-zA-Z]))(?:[a-zA-Z.\s/*()]|\\cdot(?![a-zA-Z])|\^\s*\{?\s*-?\d\s*\}?)*"
    r"|\^\s*\{?\s*\\circ\s*\}?\s*[CF]?)$"
)
_NO_NOUN = re.compile(
    r"(?<![a-z])(?:is|are|was|were|be|or|and|at|not|no|never|but|maybe|perhaps|possibly|probably|if|than|to|wrong|because)(?![a-z])"
    r"|^(?:squared|cubed|factorial)(?![a-z])"
)
"""Words behind a number that make a statement of it, which is no longer a counted noun."""
_MAX_NUMBER_LENGTH = 400

_SHORT_WORDS = {"no", "ok", "up", "on"}
"""Answers in words that are too short to be told from a product of variables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normal:
    """An answer in one spelling."""

    text: str
    """LaTeX without decoration; what a parser is given."""
    value: Fraction | None
    """Where the answer is one rational number (a percentage is a hundredth)."""
    last_digit: Fraction | None = None
    """What the last digit of a long decimal is worth; see :mod:`unigrpo.rewards.maths.tolerance`."""
    unit: str | None
    """A unit of measure that is known by name, with its power; None for none or for a counted noun."""
    is_percent: bool
    word: str | None
    """Lower-case, where the answer is words rather than mathematics."""
    is_marked_word: bool = False
    r"""Whether LaTeX says that it is words: ``\text{ab}``, which is no product of two variables."""
    name: str | None = None
    """What counts: the noun behind a number, or the name before an equality sign."""


def normalize(answer: str) -> Normal:
    """Return an answer in one spelling: Unicode, spacing, decoration, digit groups, currency, units, percent."""
    if _PLAIN_NUMBER.fullmatch(answer):
        value = Fraction(answer)
        return Normal(text=answer, value=value, unit=None, is_percent=False, word=None, last_digit=last_digit(answer))
    marked = _WORDS_ONLY.fullmatch(answer.strip().strip("$").strip())
    text = _clean(answer)
    if (plain := parse_number(text)) is not None:
        return Normal(text=text, value=plain, unit=None, is_percent=False, word=None, last_digit=_last_digit(text))
    if marked and (word := _marked_word(marked[1])) is not None:
        return Normal(text=text, value=None, unit=None, is_percent=False, word=word, is_marked_word=True)
    measured = _measure(text)
    if measured is not None:
        return measured
    text = _without_currency(text)
    return Normal(text=text, value=None, unit=None, is_percent=False, word=_as_word(text))


def in_digits(text: str) -> str:
    """Return a text in digits: ``2.5 million`` as ``2500000``, ``negative 5`` as ``-5``, ``is ten.`` as ``is 10.``."""

    def multiplied(match: re.Match[str]) -> str:
        return f"{Decimal(match[1].replace(',', '')) * _SCALES[match[2].lower()]:f}"

    text = _SAID_IN_WORDS.sub(lambda match: str(NUMBER_WORDS[match[0].lower()]), text)
    return _SCALED.sub(multiplied, _SIGN_IN_WORDS.sub("-", text))


def are_spelled_alike(one: str, other: str) -> bool:
    """Return whether two texts differ in blanks alone; one between two digits counts (``5 2`` is not ``52``)."""
    first, second = (_BLANK_BETWEEN_DIGITS.sub("_ ", text).replace(" ", "") for text in (one, other))
    return first == second


def _is_noun(text: str) -> bool:
    return len(text) > 1 and _NO_NOUN.search(text) is None


def _without_currency(text: str) -> str:
    return _CURRENCY_BEHIND.sub("", _LONE_CURRENCY.sub(r"\1", text))


def _measure(text: str) -> Normal | None:
    """Return a number with its name, currency, percent sign or unit; None where there is no number."""
    assigned = _ASSIGNMENT.match(text)
    name = text[: assigned.end()].rstrip("= ") or None if assigned else None
    body = text[assigned.end() :] if assigned else text
    currency = currency_of(body)
    body = _without_currency(body)
    body = _PERCENT.sub("%", body)
    is_percent = body.endswith("%")
    unit = None
    number = body[:-1].rstrip("\\ ") if is_percent else body
    value = parse_number(number)
    if value is None and not is_percent and (match := _UNIT.match(body)):
        is_letter = re.fullmatch(r"[A-Z]", match[2]) is not None and body[match.end(1)] != " "  # `5J` is a product.
        unit = None if is_letter else unit_of(match[2])
        noun = " ".join(match[2].lower().split()).rstrip(".")
        number = match[1].strip()
        value = parse_number(number) if unit is not None or _is_noun(noun) else None
        name = name or noun
    if value is None:
        return None
    digit = _last_digit(number)
    if is_percent:
        value, digit = value / 100, digit / 100 if digit is not None else None
    return Normal(
        text=number if unit or currency is not None or (name and not assigned) else text,
        value=value,
        last_digit=digit,
        unit=unit or currency or None,
        is_percent=is_percent,
        word=None,
        name=name,
    )


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
    if match := _POWER_OF_TEN.match(text):
        return _sign(match[1]) * Fraction(10) ** int(match[2] or match[3])
    if match := _REPEATING.match(text):
        whole, fixed, period = match[2] or "0", match[3] or match[5] or "", match[4] or match[6]
        scale = 10 ** len(fixed)
        value = Fraction(int(whole + fixed), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
        return _sign(match[1]) * value
    return None


def _last_digit(number: str) -> Fraction | None:
    """Return what the last digit of a decimal is worth, also of one in scientific notation."""
    bare = number.strip().lstrip("-+")
    if "." not in bare:
        return None
    if match := _SCIENTIFIC.match(bare):
        return last_digit(match[1], int(match[2] or match[3]))
    return last_digit(bare) if _NUMBER.match(bare) else None


def _clean(answer: str) -> str:
    text = _SUPERSCRIPT.sub(
        lambda match: f"^{{{unicodedata.normalize('NFKC', match[0]).translate(_CHARACTERS)}}}", answer
    )
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1].strip('()')}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
    text = _strip_dollars(_WHOLE_EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text.replace("`", "").strip())))
    text = _UNEQUAL.sub(r"\\neq ", text)
    text = text.replace("{,}", ",").replace("{:}", ":").replace(r"\%", "%").replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=\d)\\[,!](?=\d{3}(?!\d))", "", text)
    text = _DECORATION.sub("", _SPACING.sub(" ", text))
    text = _WRAPPERS.sub(lambda match: f" {match[1].strip()} ", text)
    text = in_digits(_WRAPPER_OF_GROUPS.sub("", text))
    text = _ELLIPSIS.sub(r" \\ldots ", text)
    text = _FRACTION_COMMAND.sub(r"\\frac", text)
    text = " ".join(text.split()).rstrip(".;,").rstrip()
    text = _strip_dollars(text)
    while _is_one_group(text):
        text = text[1:-1].strip()
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


def _is_one_group(text: str) -> bool:
    """Return whether one pair of braces holds all of a text."""
    if len(text) <= 2 or text[0] != "{" or text[-1] != "}":
        return False
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return position == len(text) - 1
    return False


def _strip_dollars(text: str) -> str:
    r"""Return the text inside ``$…$``, ``$$…$$`` or ``\(…\)``; a lone dollar sign is money and stays."""
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        stripped = text.rstrip(". ")
        if len(stripped) > len(opening) + len(closing) and stripped.startswith(opening) and stripped.endswith(closing):
            return stripped[len(opening) : -len(closing)].strip()
    bare = text.replace(r"\$", "")
    return text if bare == text or "$" not in bare or bare.count("$") % 2 else text.replace("$", "").strip()


def _marked_word(inside: str) -> str | None:
    r"""Return what ``\text{}`` holds, lower-case, where it is letters: two or more, or a choice (``(C)``)."""
    bare = " ".join(inside.split()).strip("()[]*\"'.: ").lower()
    return bare if re.fullmatch(r"[^\W\d_]{2,}(?:[ '/-]+[^\W\d_]+)*", bare) or _is_choice(bare, inside) else None


def _is_choice(bare: str, whole: str) -> bool:
    return re.fullmatch(r"[a-z]", bare) is not None and bare.upper() in whole and whole.strip().lower() != bare


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
