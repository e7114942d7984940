"""Exact match: 1 where the answer is spelt like an accepted one, up to a stated normalisation."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Collection
from typing import Literal

from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import (
    ALL_SOURCES,
    AnswerSource,
    accepted_answers,
    checked_sources,
    completion_text,
    extract_answer,
    is_number_of,
)

Normalization = Literal["none", "case", "squad"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch:
    r"""1 where the answer equals one of the accepted answers, else 0.

    Normalisations, each with the one before: ``none`` (blanks at the ends), ``case`` (Unicode form, case, runs of
    blanks), ``squad`` (ASCII punctuation and the articles a, an, the are dropped).

    Range: 0 to 1.
    Needs: column ``answer``, a text or number, or a list of them.
    Source: SQuAD's exact match (arXiv 1606.05250).
    Cost: 30 microseconds.
    Hacked by: nothing but the right words, where the answer is marked; guessing where there are few answers.
    Recipe:
        exact: {use: "unigrpo.rewards.exact_match:ExactMatch", arguments: {normalization: squad}, timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer",)
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
        rules: dict[str, Callable[[str], str]] = {"none": str.strip, "case": _as_case, "squad": _as_squad}
        if normalization not in rules:
            raise ValueError(f"normalisation {normalization!r} is unknown; give one of {list(rules)}")
        self._normalize = rules[normalization]
        self._sources = checked_sources(sources)

    def __call__(self, *, completions: Column, answer: Column | None = None, **columns: object) -> list[float | None]:
        """Return one value a completion; None for a picture, or without an accepted answer."""
        rows = zip(completions, answer or [None] * len(completions), strict=True)
        return [self._score(completion_text(text), gold) for text, gold in rows]

    def _score(self, text: str | None, gold: object) -> float | None:
        accepted = accepted_answers(gold)
        if text is None or not accepted:
            return None
        answer = extract_answer(text, self._sources)
        if answer is None:
            return 0.0
        is_spelt_alike = self._normalize(answer.text) in {self._normalize(one) for one in accepted}
        return float(is_spelt_alike or is_number_of(answer.text, gold))


def _as_case(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _as_squad(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", _as_case(text).translate(_PUNCTUATION)).split())
