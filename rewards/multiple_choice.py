"""Multiple choice: 1 where the answer names the right choice, by its letter or its text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import (
    ALL_SOURCES,
    AnswerSource,
    accepted_answers,
    checked_sources,
    completion_text,
    extract_answer,
)

_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_LABEL = re.compile(r"^(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?[\s:*(\[]+", re.IGNORECASE)
_LETTER = re.compile(r"^[\s*(\[]*([A-Za-z])(?:[\s*)\].]*$|[\s*]*[).:\]](.*)$)", re.DOTALL)
_ANCHORED = re.compile(
    r"(?i:answer|option|choice)\s*(?i:is|:|=)?\s*(?i:option|choice)?[\s:*(\[]*([A-Z])(?![A-Za-z'])(?!\s+[a-z])"
)
_BRACKETED = re.compile(r"\(([A-Z])\)|\*\*([A-Z])\*\*")
_LINE = re.compile(r"^\s*\(?([A-Z])(?:[).:]|\s*$)", re.MULTILINE)


class MultipleChoice:
    r"""1 for the right choice, 0 for another, for none and for several.

    A marked answer (``\boxed{}``, ``<answer>``, ``####``) must be one letter, one letter in front of its text, or the
    text of a choice. Unmarked prose is searched for the last "answer is B", else for "(B)" or "**B**", else for a line
    that starts with "B."; where these name more than one letter, the answer is wrong.

    Range: 0 to 1.
    Needs: column ``answer`` (a letter, a choice's text, or with ``choices`` its index from 0); column ``choices``, a
        list, where texts are to be understood.
    Source: ours; the convention of MMLU-like and MMBench-like data.
    Cost: 30 microseconds.
    Hacked by: guessing, which is right once in as many choices. Use groups of mixed outcome, or more choices.
    Recipe:
        choice: {use: "unigrpo.rewards.multiple_choice:MultipleChoice", tasks: [understand], timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer", "choices")
    is_deterministic = True

    def __init__(self, *, num_choices: int = 10, sources: Collection[AnswerSource] = ALL_SOURCES) -> None:
        """Set up.

        Args:
            num_choices: letters that are choices where the data has no ``choices``: A and the following.
            sources: where an answer may stand: ``box``, ``tag``, ``hashes``, ``text``.

        Raises:
            ValueError: for fewer than two choices, more than 26, or an unknown source.
        """
        if not 2 <= num_choices <= 26:
            raise ValueError(f"num_choices is {num_choices}; give 2 to 26")
        self._num_choices = num_choices
        self._sources = checked_sources(sources)

    def __call__(
        self, *, completions: Column, answer: Column | None = None, choices: Column | None = None, **columns: object
    ) -> list[float | None]:
        """Return one value a completion; None for a picture, or without a right choice."""
        nothing = [None] * len(completions)
        rows = zip(completions, answer or nothing, choices or nothing, strict=True)
        return [self._score(completion_text(text), gold, accepted_answers(texts)) for text, gold, texts in rows]

    def _score(self, text: str | None, gold: object, choices: Sequence[str]) -> float | None:
        wanted = _gold_letter(gold, choices)
        if text is None or wanted is None:
            return None
        answer = extract_answer(text, self._sources)
        if answer is None:
            return 0.0
        letter = _search_letter(answer.text) if answer.source == "text" else None
        letter = letter or _read_letter(answer.text, choices)
        num_choices = len(choices) or self._num_choices
        return float(letter == wanted and ord(letter) - ord("A") < num_choices)


def _gold_letter(gold: object, choices: Sequence[str]) -> str | None:
    if isinstance(gold, int) and not isinstance(gold, bool):
        return chr(ord("A") + gold) if 0 <= gold < len(choices) else None
    return _read_letter(str(gold), choices) if gold is not None and str(gold).strip() else None


def _read_letter(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter that a short answer names; None for prose, and for something that is no choice."""
    text = _plain(_LABEL.sub("", _plain(text)))
    by_text = {_plain(choice).casefold(): chr(ord("A") + index) for index, choice in enumerate(choices)}
    if len(by_text) == len(choices) and text.casefold() in by_text:
        return by_text[text.casefold()]
    match = _LETTER.match(text)
    if match is None:
        return None
    rest = match[2] or ""
    is_several = re.search(r"(?<![A-Za-z'])[B-Z](?![A-Za-z'])", rest) is not None and len(rest) < 20
    return None if is_several else match[1].upper()


def _search_letter(text: str) -> str | None:
    """Return the one letter that prose settles on."""
    anchored = _ANCHORED.findall(text)
    if anchored:
        return str(anchored[-1]).upper()
    for pattern in (_BRACKETED, _LINE):
        letters = {match[1] or match[match.lastindex or 1] for match in pattern.finditer(text)}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def _plain(text: str) -> str:
    return " ".join(_WRAPPER.sub(r"\1", text).replace("$", "").split()).strip(" .*`\"'")
