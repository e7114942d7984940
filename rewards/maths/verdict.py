r"""A verdict on one answer where spelling, exact numbers, words or a guard decide; else the pair for the worker."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from unigrpo.rewards.maths.guards import has_relation, is_explosive, is_false_equation
from unigrpo.rewards.maths.normalize import Normal, are_spelled_alike, in_digits, normalize
from unigrpo.rewards.maths.number_words import NUMBER_WORDS
from unigrpo.rewards.maths.parts import have_same_parts, split_parts
from unigrpo.rewards.maths.prose import Claim, find_claim, is_cut_off, is_formula, leaves_open
from unigrpo.rewards.maths.spelling import are_spelt_alike
from unigrpo.rewards.maths.tolerance import are_one_number
from unigrpo.rewards.text.answers import ALL_SOURCES, MAX_ANSWER_LENGTH, Answer, AnswerSource, extract_answer

Equality = Literal["mathematics", "spelling"]

_LETTER_GOLD = re.compile(r"[A-Z]")
_CHOICE = re.compile(r"\(([A-Za-z])\)|(?<![A-Za-z])([A-Z])(?![A-Za-z'])")
_CHOICE_AND_ITS_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[).:])\s*(?!or\b|and\b|[A-Z](?![A-Za-z]))[^\s,;&/(][^?()]*")
"""How an answer says a choice with what it says: ``(C) 5``."""
_BASE = re.compile(r"\d_\s*\{?\s*(\d{1,2})")
"""The base of a number: ``52_8`` is not ``52_7``."""
_ELLIPSIS = r"\ldots"
_PROSE_LENGTH = 300
_SENTENCE = re.compile(
    r"(?i)(?<![a-z\\])(?:[a-z]{2,}\s+(?:is|are|equals?)(?![a-z])|answer\s*:|^[a-z]+(?:\s+[a-z]+){1,4}\s+\\?\$?\d+\s+[a-z]{3})"
)
"""A marked answer that is said in words: ``The answer is 5.``."""
_HEDGED = re.compile(r"(?i)(?<![a-z\\])(?:or|between|maybe|perhaps|possibly|not|never|either|neither|nor)(?![a-z])|\?")


@dataclass(frozen=True, slots=True)
class Pair:
    """What the worker compares; the key of the cache."""

    prediction: str
    gold: str
    is_prose: bool


def judge_cheaply(
    text: str | None,
    gold: str | None,
    *,
    sources: Collection[AnswerSource] = ALL_SOURCES,
    equality: Equality = "mathematics",
) -> float | Pair | None:
    """Return a verdict where spelling, exact numbers or a guard decide; else the pair for the worker."""
    if text is None or gold is None or not gold.strip() or len(gold) > MAX_ANSWER_LENGTH:
        return None
    answer = extract_answer(text, sources)
    if answer is None:
        return 0.0
    if equality == "spelling":
        return float(are_spelt_alike(answer.text, gold))
    if answer.source == "text":
        return _judge_prose(answer.text, gold)
    if answer.source == "hashes" and is_cut_off(answer.text):
        return 0.0
    return _judge(answer, gold)


def _judge(answer: Answer, gold: str) -> float | Pair:
    given, wanted = normalize(answer.text), normalize(gold)
    decided = _same_part(given, wanted)
    if decided == 1.0 or (decided is not None and wanted.value is not None):
        return decided
    asked = split_parts(gold)
    in_parts = _same_answer_in_parts(answer, asked)
    if in_parts is not None or decided is not None:
        return in_parts if in_parts is not None else decided  # type: ignore[return-value]
    if len(asked) == 1 and wanted.word is None and _HEDGED.search(given.text):
        return 0.0
    if wanted.word is None and _SENTENCE.search(given.text):
        return _judge_prose(answer.text, gold)
    return 0.0 if _is_wrong(given.text, wanted.text) else Pair(given.text, wanted.text, False)


def _is_wrong(given: str, wanted: str) -> bool:
    """Return whether a guard keeps a pair from the worker."""
    return (
        (is_false_equation(given) and "=" not in wanted)
        or is_explosive(given)
        or is_explosive(wanted)
        or (has_relation(wanted) != has_relation(given) and not _is_set_like(wanted, given))
        or _ELLIPSIS in given
        or _ELLIPSIS in wanted
        or len({*_BASE.findall(given), *_BASE.findall(wanted)}) > 1
    )


def _same_answer_in_parts(answer: Answer, asked: list[str]) -> float | None:
    """Return the verdict on an answer to a question of several parts; None where mathematics has to tell."""
    if len(asked) == 1:
        return None
    given = split_parts(answer.text)
    if len(given) == 1 and len(answer.asked) == len(asked):
        given = [part for box in answer.asked for part in split_parts(box)]
    if len(given) == 1:
        return None
    same = have_same_parts(given, asked, _same_part)
    return None if same is None else float(same)


def _same_part(given: Normal, wanted: Normal) -> float | None:
    """Return 1 or 0 where both are alike or both are numbers or words; None where mathematics has to decide."""
    if given.unit is not None and wanted.unit is not None and given.unit != wanted.unit:
        return 0.0
    if are_spelled_alike(given.text, wanted.text):
        return 1.0
    if given.value is not None and wanted.value is not None:
        is_right = are_one_number(given.value, wanted.value, given.last_digit, wanted.last_digit)
        return float(is_right or _is_bare_percent(given, wanted))
    if wanted.value is not None and given.word in NUMBER_WORDS:
        return float(wanted.value == NUMBER_WORDS[given.word])
    if wanted.word is not None:
        return float((given.word or given.text.strip("()[]*\"'.: ").lower()) == wanted.word)
    if given.is_marked_word:
        return float(given.word == wanted.text.strip("()[]*\"'.: ").lower())
    if _LETTER_GOLD.fullmatch(wanted.text) and given.word is not None and len(given.word) == 1:
        return float(given.word == wanted.text.lower())
    choice = _CHOICE_AND_ITS_TEXT.fullmatch(given.text) if _LETTER_GOLD.fullmatch(wanted.text) else None
    if choice is not None and not _HEDGED.search(given.text):
        return float((choice[1] or choice[2]) == wanted.text)
    return None


def _is_bare_percent(given: Normal, wanted: Normal) -> bool:
    """Return whether one side leaves out the percent sign (``35`` for ``35%``, or the reverse)."""
    if given.is_percent == wanted.is_percent or given.value is None or wanted.value is None:
        return False
    return given.value == wanted.value * 100 if wanted.is_percent else given.value * 100 == wanted.value


def _is_set_like(wanted: str, given: str) -> bool:
    """Return whether an inequality stands against a set or an interval, which may mean the same."""
    return any(text.lstrip("- ").startswith(("(", "[", "\\{", "\\emptyset", "\\mathbb")) for text in (wanted, given))


def _judge_prose(text: str, gold: str) -> float | Pair:
    """Judge unmarked text: all of it, then the one thing that it claims."""
    text, wanted = in_digits(text), normalize(gold)
    if len(text) <= _PROSE_LENGTH and _same_part(normalize(text), wanted) == 1.0:
        return float(not is_cut_off(text))
    is_letter = _LETTER_GOLD.fullmatch(wanted.text) is not None
    claim = find_claim(text, "letter" if is_letter else "mathematics" if wanted.word is None else "words")
    if claim is None:
        return 0.0
    if leaves_open(claim.predicate) and len(split_parts(gold)) == 1:
        return float(all(_same_part(normalize(part), wanted) == 1.0 for part in split_parts(claim.predicate)))
    pieces = [piece for piece in (claim.predicate, claim.value) if 0 < len(piece) <= MAX_ANSWER_LENGTH]
    if any(_same_part(normalize(piece), wanted) == 1.0 for piece in pieces):
        return 1.0
    if wanted.word is not None:
        return 0.0
    if is_letter:
        letters = {(match[1] or match[2]).upper() for match in _CHOICE.finditer(claim.predicate or claim.sentence)}
        return float(letters == {wanted.text})
    return _judge_claim(claim, pieces, gold, wanted)


def _judge_claim(claim: Claim, pieces: list[str], gold: str, wanted: Normal) -> float | Pair:
    """Judge a number or formula that prose claims: by its parts, then by the worker."""
    asked = split_parts(gold)
    for piece in pieces:
        given = split_parts(piece)
        if len(given) > 1 and all(normalize(part).value is not None for part in given):
            return float(have_same_parts(given, asked, _same_part) is True)
    tail = claim.sentence[-_PROSE_LENGTH:]
    if is_explosive(tail) or is_explosive(wanted.text) or _ELLIPSIS in wanted.text:
        return 0.0
    formula = claim.predicate if "=" in wanted.text else claim.value
    if formula and len(formula) <= MAX_ANSWER_LENGTH and is_formula(formula):
        given = normalize(formula).text
        return 0.0 if _is_wrong(given, wanted.text) else Pair(given, wanted.text, False)
    is_set = has_relation(normalize(claim.predicate[:MAX_ANSWER_LENGTH]).text)
    if is_set and not has_relation(wanted.text) and not _is_set_like(wanted.text, ""):
        return 0.0
    return Pair(claim.sentence.replace(r"\$", "$"), wanted.text, True)
