"""Countdown: does the arithmetic use the given numbers and reach the target? Our own parser reads it."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from unigrpo.documents import parse_json
from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import AnswerSource, checked_sources, completion_text, cut_at_eos, extract_answer
from unigrpo.rewards.text.plain import without_format_signs

_LOGGER = logging.getLogger(__name__)

MAX_EXPRESSION_LENGTH = 300
MAX_DIGITS = 12
"""Digits of one number. With no powers and at most 300 characters, nothing can grow beyond a few hundred digits."""
_MAX_DEPTH = 40
_NUMBERS = ("nums", "numbers", "input")
_WANTED = "nums or numbers with target, or answer: [[numbers], target]"
_TARGETS = ("target", "output")

_SPELLINGS = (
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|[\u00d7\u00b7\u2217]"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|[\u00f7\u2215]"), "/"),
    (re.compile(r"[\u2212\u2010-\u2014]"), "-"),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:! ()\[\]]|\$"), " "),
    (re.compile(r"[\[{]"), "("),
    (re.compile(r"[\]}]"), ")"),
)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)")
_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))")


class ArithmeticSyntaxError(ValueError):
    """A text that is not arithmetic of whole numbers with ``+ - * /`` and brackets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """An expression that was read."""

    value: Fraction | None
    """None for a division by zero."""
    numbers: tuple[int, ...]
    """Every number written, in order."""


class Countdown:
    r"""1 where the answer is arithmetic that uses the given numbers and equals the target, else 0.

    The answer is the last ``\boxed{}``, else ``<answer>``, else all of the text where that is nothing but arithmetic.
    A box that ``</answer>`` or a stray ``>`` closes in place of its brace counts, as arithmetic cannot hold either.
    LaTeX and Unicode signs are understood; of ``a + b = c`` the left side counts, and
    the others must be worth the same. Values are exact fractions.

    Range: 0 to 1.
    Needs: columns ``nums`` and ``target`` (TinyZero), ``numbers`` and ``target`` (d1), or ``input`` and ``output``
        (d1's test files); or column ``answer``, ``[[numbers], target]`` or ``{"numbers": ..., "target": ...}``. Each
        may be JSON or its text, numbers also a text like ``3,5,7``.
    Source: TinyZero's countdown task, as in d1 (arXiv 2504.12216), which gives 0.1 for a wrong attempt.
    Cost: 60 microseconds.
    Hacked by: with ``attempt_value``, any arithmetic at all. At 0 the value cannot be had without a solution.
    Recipe:
        countdown: {use: "unigrpo.rewards.countdown:Countdown", timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer", "nums", "numbers", "input", "target", "output")
    needed_columns = (("answer",), ("nums", "target"), ("numbers", "target"), ("input", "output"))
    is_deterministic = True

    def __init__(
        self,
        *,
        attempt_value: float = 0.0,
        needs_all: bool = True,
        sources: Collection[AnswerSource] = ("box", "tag", "text"),
    ) -> None:
        """Set up.

        Args:
            attempt_value: what an answer gets that is arithmetic but not a solution.
            needs_all: whether each number must be used exactly once; else at most once.
            sources: where an answer may stand: ``box``, ``tag``, ``hashes``, ``text``.

        Raises:
            ValueError: for an attempt that is worth as much as a solution, or an unknown source.
        """
        if not 0 <= attempt_value < 1:
            raise ValueError(f"attempt_value is {attempt_value}; give a number from 0 to less than 1")
        self._attempt_value = attempt_value
        self._needs_all = needs_all
        self._sources = checked_sources(sources)
        self._has_warned = False

    def __call__(self, *, completions: Column, **columns: Column) -> list[float | None]:
        """Return one value a completion; None for a picture, or without numbers and target."""
        given = {name: columns[name] for name in self.wanted_columns if columns.get(name) is not None}
        rows = [{name: column[row] for name, column in given.items()} for row in range(len(completions))]
        tasks = [task_of(row) for row in rows]
        unread = [row for row, task in zip(rows, tasks, strict=True) if task is None and any(row.values())]
        if unread and not self._has_warned:
            self._has_warned = True
            _LOGGER.warning("no numbers and target in %.200r; wanted %s (this is said once)", unread[0], _WANTED)
        return [self._score(completion_text(text), task) for text, task in zip(completions, tasks, strict=True)]

    def _score(self, text: str | None, task: tuple[tuple[int, ...], Fraction] | None) -> float | None:
        if text is None or task is None:
            return None
        answer = extract_answer(text, self._sources)
        expression = answer.text if answer is not None else self._tag_with_broken_box(text)
        numbers, target = task
        try:
            given = read_arithmetic(expression)
        except ArithmeticSyntaxError:
            return 0.0
        used, allowed = Counter(given.numbers), Counter(numbers)
        is_allowed = used == allowed if self._needs_all else used <= allowed
        return 1.0 if is_allowed and given.value == target else self._attempt_value

    def _tag_with_broken_box(self, text: str) -> str:
        text = cut_at_eos(text)
        start = text.rfind("<answer>")
        if "tag" not in self._sources or start < 0:
            return ""
        section, end, _ = text[start + len("<answer>") :].partition("</answer>")
        section = section.strip()
        if not end and not section.endswith(">"):
            return ""
        return section.removeprefix("\\boxed{").removesuffix(">")


def task_of(row: Mapping[str, Any]) -> tuple[tuple[int, ...], Fraction] | None:
    """Return numbers and target of a row, whichever columns have them; None where they are in none, or unreadable."""
    found = {name: value for name, value in row.items() if value is not None}
    numbers = next((found[name] for name in _NUMBERS if name in found), None)
    target = next((found[name] for name in _TARGETS if name in found), None)
    answer = found.get("answer")
    if numbers is not None and (target is not None or answer is not None):
        return read_task([numbers, answer if target is None else target])
    return read_task(answer)


def read_task(gold: object) -> tuple[tuple[int, ...], Fraction] | None:
    """Return numbers and target of ``[[numbers], target]`` or of an object with both; None for anything else."""
    try:
        task = _parsed(gold)
        if isinstance(task, Mapping):
            task = [
                next((task[name] for name in _NUMBERS if name in task), None),
                next((task[name] for name in _TARGETS if name in task), None),
            ]
        numbers, target = task
        return tuple(_whole(number) for number in _listed(numbers)), Fraction(_parsed(target))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _parsed(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) else value


def _listed(numbers: Any) -> Sequence[Any]:
    if isinstance(numbers, str) and not numbers.lstrip().startswith("["):
        return [int(number) for number in re.split(r"[\s,;]+", numbers.strip())]
    listed = _parsed(numbers)
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"{numbers!r} are no numbers")
    return listed


def _whole(number: Any) -> int:
    whole = int(number)
    if isinstance(number, bool) or whole != float(number):
        raise ValueError(f"{number!r} is no whole number")
    return whole


def read_arithmetic(text: str) -> Arithmetic:
    """Return what an expression is worth; of an equation, its left side (its right side where the left is a number).

    Raises:
        ArithmeticSyntaxError: for anything but whole numbers of at most 12 digits, ``+ - * /`` and brackets.
    """
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise ArithmeticSyntaxError(f"{len(text)} characters are more than {MAX_EXPRESSION_LENGTH}")
    text = _TEXT.sub(r"\1", without_format_signs(text)).strip(" \n`")
    text = text[2:-2] if len(text) > 4 and text.startswith("**") and text.endswith("**") else text
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    sides = [side for side in text.split("=") if side.strip()]
    if not sides:
        raise ArithmeticSyntaxError("nothing to read")
    if len(sides) > 1 and sides[0].strip().isdecimal():
        sides.reverse()
    given, *others = [_Reader(_tokens(_ZEROS.sub("", side))).read() for side in sides]
    if any(other.value != given.value for other in others):
        raise ArithmeticSyntaxError("the sides of an equation differ")
    return given


def _tokens(text: str) -> list[str]:
    tokens = []
    position = 0
    text = text.rstrip().removesuffix(".").rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ArithmeticSyntaxError(f"{text[position : position + 10]!r} is not arithmetic")
        if match[1] and len(match[1]) > MAX_DIGITS:
            raise ArithmeticSyntaxError(f"a number of {len(match[1])} digits is more than {MAX_DIGITS}")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


class _Reader:
    """Reads tokens by descent: a sum of products of numbers, signs and brackets. ``**`` is not in the grammar."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [*tokens, ""]
        self._position = 0
        self._numbers: list[int] = []
        self._depth = 0

    def read(self) -> Arithmetic:
        value = self._sum()
        if self._token:
            raise ArithmeticSyntaxError(f"{self._token!r} is out of place")
        return Arithmetic(value=value, numbers=tuple(self._numbers))

    @property
    def _token(self) -> str:
        return self._tokens[self._position]

    def _take(self) -> str:
        self._position += 1
        return self._tokens[self._position - 1]

    def _sum(self) -> Fraction | None:
        value = self._product()
        while self._token and self._token in "+-":
            sign = 1 if self._take() == "+" else -1
            term = self._product()
            value = None if value is None or term is None else value + sign * term
        return value

    def _product(self) -> Fraction | None:
        value = self._factor()
        while self._token and self._token in "*/":
            is_division = self._take() == "/"
            factor = self._factor()
            if value is None or factor is None or (is_division and factor == 0):
                value = None
            else:
                value = value / factor if is_division else value * factor
        return value

    def _factor(self) -> Fraction | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ArithmeticSyntaxError(f"brackets and signs are more than {_MAX_DEPTH} deep")
        token = self._take()
        if token == "(":
            value = self._sum()
            if self._take() != ")":
                raise ArithmeticSyntaxError("a bracket is not closed")
        elif token and token in "+-":
            inner = self._factor()
            value = None if inner is None else inner * (1 if token == "+" else -1)
        elif token.isdecimal():
            self._numbers.append(int(token))
            value = Fraction(int(token))
        else:
            raise ArithmeticSyntaxError(f"a number is missing before {token!r}")
        self._depth -= 1
        return value
