"""Multiple choice: 1 where the answer names the right choice, by its letter or its text."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from unigrpo.rewards.base import Column, Failed
from unigrpo.rewards.text.answers import ALL_SOURCES, AnswerSource, checked_sources, completion_text, extract_answer
from unigrpo.rewards.text.choices import choice_of_words, named_choice
from unigrpo.rewards.text.golds import Gold, text_of

_MAX_LETTER = 5
"""Characters of a letter with its signs; more than that may have a choice's text."""

GoldForm = Literal["auto", "letter", "text", "index_from_0", "index_from_1"]


class MultipleChoice:
    r"""1 for the right choice, 0 for another, for none and for several.

    The answer (``\boxed{}``, ``<answer>``, ``####``, else the text behind the reasoning) names a choice by its letter,
    by its text or by both, which must agree. The last statement of what the answer is counts: "A? No, B" is B. What
    names two ("A or B", "both"), denies ("not A"), or breaks off ("A or") earns nothing, and the article "a" is no A.

    How ``answer`` is read: a number is an index from 0; a text is a choice's text, else a letter. Where that leaves a
    doubt (digits as text, a number among choices that are numbers, "B" where the first choice reads B), the item is an
    error, which names ``gold: ...``.

    Range: 0 to 1.
    Needs: column ``answer`` (a letter, a choice's text, or with ``choices`` its index); column ``choices``, a list, an
        object of letters, or ARC's object of ``text`` and ``label``, where texts are to be understood.
    Source: ours; the convention of MMLU-like and MMBench-like data.
    Cost: 0.3 milliseconds.
    Hacked by: guessing, which is right once in as many choices. Use groups of mixed outcome, or more choices.
    Recipe:
        choice: {use: "unigrpo.rewards.multiple_choice:MultipleChoice", tasks: [understand], timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer", "choices")
    needed_columns = (("answer",),)
    is_deterministic = True

    def __init__(
        self, *, num_choices: int = 10, gold: GoldForm = "auto", sources: Collection[AnswerSource] = ALL_SOURCES
    ) -> None:
        """Set up.

        Args:
            num_choices: letters that are choices where the data has no ``choices``: A and the following.
            gold: what ``answer`` holds: ``letter``, ``text``, ``index_from_0``, ``index_from_1``; ``auto`` as above.
            sources: where an answer may stand: ``box``, ``tag``, ``hashes``, ``text``.

        Raises:
            ValueError: for fewer than two choices, more than 26, or an unknown form or source.
        """
        if not 2 <= num_choices <= 26:
            raise ValueError(f"num_choices is {num_choices}; give 2 to 26")
        if gold not in get_args(GoldForm):
            raise ValueError(f"gold is {gold!r}; give one of {', '.join(get_args(GoldForm))}")
        self._num_choices = num_choices
        self._gold = gold
        self._sources = checked_sources(sources)

    def __call__(
        self, *, completions: Column, answer: Column | None = None, choices: Column | None = None, **columns: object
    ) -> list[float | Failed | None]:
        """Return one value a completion; None for a picture, or without a right choice."""
        nothing = [None] * len(completions)
        rows = zip(completions, answer or nothing, choices or nothing, strict=True)
        return [self._score(completion_text(text), gold, column) for text, gold, column in rows]

    def _score(self, text: str | None, gold: object, column: object) -> float | Failed | None:
        try:
            choices = read_choices(column)
            wanted = gold_letter(gold, choices, self._gold)
        except ValueError as error:
            return Failed(str(error))
        if text is None or wanted is None:
            return None
        answer = extract_answer(text, self._sources)
        letter = None if answer is None else named_choice(answer.text, [text_of(one) for one in choices.values()])
        num_choices = len(choices) or self._num_choices
        return float(letter == wanted and ord(letter) - ord("A") < num_choices)


def read_choices(column: object) -> dict[str, Gold]:
    """Return the choices by label, in order: those of a list are labeled A, B and so on; nothing where there are none.

    Raises:
        ValueError: for more than 26, or something else.
    """
    if column is None:
        return {}
    labels: Sequence[object] | None = None
    if isinstance(column, Mapping):
        is_arc = isinstance(column.get("text"), Sequence) and not isinstance(column["text"], str)
        labels = column.get("label") if is_arc else list(column)
        column = column["text"] if is_arc else list(column.values())
    if not isinstance(column, Sequence) or isinstance(column, str | bytes) or len(column) > 26:
        raise ValueError(f"choices are {str(column)[:60]!r}; wanted a list of at most 26, A first")
    if not all(isinstance(one, str | int | float) for one in column) or (labels and len(labels) != len(column)):
        raise ValueError(f"choices are {str(column)[:60]!r}; wanted texts or numbers, with as many labels if any")
    names = [str(label) for label in labels] if labels else [chr(ord("A") + index) for index in range(len(column))]
    found = dict(zip(names, column, strict=True))
    if len(found) < len(names):
        raise ValueError(f"choices have labels {names}; wanted each once")
    is_lettered = sorted(found) == [chr(ord("A") + index) for index in range(len(found))]
    return {name: found[name] for name in sorted(found)} if is_lettered else found


def gold_letter(gold: object, choices: Mapping[str, Gold], form: GoldForm = "auto") -> str | None:
    """Return the right choice's letter by its place; None where there is no gold, or without choices no letter.

    Raises:
        ValueError: for a gold that is none of the choices, or may be two of them.
    """
    if isinstance(gold, list | tuple) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, float) and not math.isfinite(gold):
        return None
    if gold is None or not str(gold).strip() or (_is_number(gold) and not choices):
        return None
    known = f"the choices {[text_of(one) for one in choices.values()]}" if choices else "the letters"
    if not isinstance(gold, str | int | float):
        raise ValueError(f"the answer {str(gold)[:60]!r} is a {type(gold).__name__}; wanted one of {known}")
    readings = _readings(gold, choices)
    allowed = _allowed(gold, readings, choices) if form == "auto" else {form}
    places = {place for name, place in readings.items() if name in allowed}
    if len(places) == 1:
        return chr(ord("A") + places.pop())
    if not places and not choices:
        return None
    if not places:
        raise ValueError(
            f"the answer {gold!r} is none of {known} as {' or '.join(sorted(allowed))}; the reward's argument gold "
            f"says what it holds: {', '.join(get_args(GoldForm))}"
        )
    ways = " or ".join(name for name in readings if name in allowed)
    raise ValueError(f"the answer {gold!r} among {known} may be {ways}; say which with the reward's argument gold")


def _allowed(gold: str | int | float, readings: Mapping[str, int], choices: Mapping[str, Gold]) -> set[str]:
    """Return what a gold may be where the recipe does not say: a number an index from 0, a text a text or a letter."""
    if _is_number(gold):
        return {"index_from_0", "text"} if any(map(_is_number, choices.values())) else {"index_from_0"}
    return {"text", "letter"}


def _readings(gold: str | int | float, choices: Mapping[str, Gold]) -> dict[str, int]:
    """Return the places that a gold may mean, by the name of the reading."""
    texts = [text_of(one) for one in choices.values()]
    plain = " ".join(text_of(gold).split())
    found: dict[str, int] = {}
    if plain.removeprefix("-").isdecimal():
        indices = {"index_from_0": int(plain), "index_from_1": int(plain) - 1}
        found |= {name: place for name, place in indices.items() if 0 <= place < len(texts)}
    worded = choice_of_words(plain, texts)
    if worded is not None:
        found["text"] = ord(worded) - ord("A")
    labeled = named_choice(plain, () if len(plain) < _MAX_LETTER else texts)
    if plain in choices:
        found["letter"] = list(choices).index(plain)
    elif labeled is not None and (not texts or ord(labeled) - ord("A") < len(texts)):
        found["letter"] = ord(labeled) - ord("A")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
