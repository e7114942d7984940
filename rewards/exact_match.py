"""Exact match: 1 where the answer is spelt like an accepted one, up to a stated normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from unigrpo.rewards.base import Column, Failed
from unigrpo.rewards.text.answers import ALL_SOURCES, AnswerSource, checked_sources, completion_text, extract_answer
from unigrpo.rewards.text.golds import Gold, golds_of, is_number_of, text_of
from unigrpo.rewards.text.plain import plain_text, without_dress

Normalization = Literal["none", "case", "squad"]

_ARTICLES = re.compile(r"(?<![^\s\"'(\[])(?:an?|the)\s+(?=[\"'(\[]*\w\w)|(?<![^\s\"'(\[])the\s+(?=\w)")
"""An article stands before a word: the last word of ``vitamin a``, and the first of ``a, b``, are none."""
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_MEANT = re.compile(
    r"(?<=\d)[^\w\s](?=[^\w\s]?\d)"  # between digits: 3.5, 1:30, 2-3
    r"|(?<=\d )[-*/](?= \d)|(?<=\de)[-+](?=\d)"  # 2 * 3, 1e-5
    r"|(?<![\w)\]])[-.](?=[^\w\s]?\d)"  # before a number: -5, .5, -$5
    r"|(?<![\w)\]])-(?=[a-z](?![a-z]))|(?<![\w)\].])\.(?=[a-z])"  # before a variable or a name: -x, .NET
    r"|(?<=\w)[-+#*]+(?!\w)"  # behind a name: C++, C#, A-, A*
    r"|(?<=\d)[!%]"  # a factorial, hundredths
)
_PLUS = re.compile(r"(?<![\w)\]])\+(?=\d)")
_LOOSE_MINUS = re.compile(r"^- (?=[\d.]+$)")
_KEPT = 0xE000
"""Signs that mean something are put this far away while the others are dropped."""


class ExactMatch:
    r"""1 where the answer equals one of the accepted answers, else 0.

    Normalisations, each with the one before: ``none`` (blanks at the ends), ``case`` (Unicode form, case, runs of
    blanks, signs without width), ``squad`` (punctuation, ``$`` and the articles a, an, the before a word are dropped).
    What says something stays under ``squad``, too: the sign and the point of a number, ``C++``, ``C#``, ``A-``, ``5%``,
    ``<``, other currencies; and what would leave nothing is not done, so that ``.`` is not ``the``. A number in the
    column is a number: 23 and 23.0 accept ``23``, ``23.0`` and ``23.00``, 1000 also ``1,000``; a text "23" does not
    accept ``23.0``. True accepts ``true``, not 1.

    Range: 0 to 1.
    Needs: column ``answer``, a text or number, or a list of them, any of which is right (objects with ``answer``,
        ``text`` or ``value`` and ``aliases`` are understood).
    Source: SQuAD's exact match (arXiv 1606.05250).
    Cost: 0.2 milliseconds.
    Hacked by: nothing but the right words, where the answer is marked; guessing where there are few answers.
    Recipe:
        exact: {use: "unigrpo.rewards.exact_match:ExactMatch", arguments: {normalization: squad}, timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer",)
    needed_columns = (("answer",),)
    is_deterministic = True

    def __init__(
        self, *, normalization: Normalization = "squad", sources: Collection[AnswerSource] = ALL_SOURCES
    ) -> None:
        r"""Set up.

        Args:
            normalization: what two spellings may differ in.
            sources: where an answer may stand: ``box`` (``\boxed{}``), ``tag`` (``<answer>``), ``hashes`` (``####``),
                ``text`` (all of the unmarked text behind the reasoning).

        Raises:
            ValueError: for an unknown normalisation or source.
        """
        rules: dict[str, Callable[[str], str]] = {"none": str.strip, "case": plain_text, "squad": _as_squad}
        if normalization not in rules:
            raise ValueError(f"normalisation {normalization!r} is unknown; give one of {list(rules)}")
        self._normalize = rules[normalization]
        self._sources = checked_sources(sources)

    def __call__(
        self, *, completions: Column, answer: Column | None = None, **columns: object
    ) -> list[float | Failed | None]:
        """Return one value a completion; None for a picture, or without an accepted answer."""
        rows = zip(completions, answer or [None] * len(completions), strict=True)
        return [self._score(completion_text(text), gold) for text, gold in rows]

    def _score(self, text: str | None, column: object) -> float | Failed | None:
        try:
            accepted = golds_of(column)
        except ValueError as error:
            return Failed(str(error))
        if text is None or not accepted:
            return None
        answer = extract_answer(text, self._sources)
        return 0.0 if answer is None else float(self._is_accepted(answer.text, accepted))

    def _is_accepted(self, text: str, accepted: Sequence[Gold]) -> bool:
        given = self._normalize(text)
        return any(is_number_of(given, gold) or self._normalize(text_of(gold)) == given for gold in accepted)


def _as_squad(text: str) -> str:
    """Return a text without punctuation that says nothing and without articles; the plain text if that leaves nothing.

    SQuAD's own drops every ASCII sign and every article, so that -5 is 5 and C++ is C.
    """
    plain = plain_text(without_dress(text))
    marked = _ARTICLES.sub("", _LOOSE_MINUS.sub("-", plain))
    marked = _PLUS.sub("", _GROUPED.sub(lambda match: match[0].replace(",", ""), marked)).replace(" %", "%")
    marked = _MEANT.sub(lambda match: "".join(chr(_KEPT + ord(sign)) for sign in match[0]), marked)
    left = "".join(sign for sign in marked if sign != "$" and unicodedata.category(sign)[0] != "P")
    back = "".join(chr(ord(sign) - _KEPT) if _KEPT <= ord(sign) < _KEPT + 0x80 else sign for sign in left)
    return " ".join(back.split()) or plain
