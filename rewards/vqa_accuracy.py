"""VQA accuracy: how many of the annotators gave this answer, three being enough."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from unigrpo.rewards.base import Column, Failed
from unigrpo.rewards.text.answers import ALL_SOURCES, AnswerSource, checked_sources, completion_text, extract_answer
from unigrpo.rewards.text.golds import golds_of, text_of
from unigrpo.rewards.text.plain import without_dress, without_format_signs

NUM_AGREEING = 3
"""Annotators who are enough for an answer to be right."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MEANT = re.compile(r"(?<![\w)])-(?=\.?\d)|(?<=\w)\+\+(?!\w)")
"""The sign of a number, and that of ``C++``."""
_KEPT = {ord("-"): "\ue02d", ord("+"): "\ue02b"}
_KEPT_BACK = {ord(kept): chr(sign) for sign, kept in _KEPT.items()}
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that'd that'd've
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""Not ``let's``, ``she's``, ``we're``, ``it's``: without the apostrophe they are other words."""


def _without_one_apostrophe(form: str) -> list[str]:
    return [form[:index] + form[index + 1 :] for index, sign in enumerate(form) if sign == "'"]


_CONTRACTIONS = {bare: form for form in _CONTRACTED.split() for bare in _without_one_apostrophe(form)}


class VQAAccuracy:
    r"""The soft accuracy of VQA: the mean over annotators left out of min(1, others who agree / 3).

    So of ten annotators 1 who agrees makes 0.3, 2 make 0.6, 3 make 0.9, 4 make 1. With fewer than four, all the others
    must agree; a single one is compared exactly. Both sides are normalised as VQA's evaluation does it: punctuation,
    number words to ten, articles, apostrophes of contractions. That evaluation leaves spellings alone where all
    annotators agree, so that ``Yes`` misses ``yes``; here they are normalised there, too. It also takes all for equal
    of which nothing is left, ``a`` and ``the``; here such an answer is compared as it stands. The sign of a number and
    ``C++`` stay what they are, where that evaluation drops signs; emphasis and ``\text{}`` are dropped.

    Range: 0 to 1.
    Needs: column ``answers`` for each prompt, a list of texts or numbers, or of VQA's objects with ``answer``; else
        ``answer`` with the same, or a single one.
    Source: VQA v2 (arXiv 1612.00837) and its evaluation; also TextVQA and OK-VQA.
    Cost: 50 microseconds.
    Hacked by: the commonest answers, yes and 2, whatever the picture shows. Balance the questions.
    Recipe:
        vqa: {use: "unigrpo.rewards.vqa_accuracy:VQAAccuracy", tasks: [understand], timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answers", "answer")
    needed_columns = (("answers",), ("answer",))
    is_deterministic = True

    def __init__(self, *, sources: Collection[AnswerSource] = ALL_SOURCES) -> None:
        r"""Set up.

        Args:
            sources: where an answer may stand: ``box`` (``\boxed{}``), ``tag`` (``<answer>``), ``hashes`` (``####``),
                ``text`` (all of the unmarked text behind the reasoning).

        Raises:
            ValueError: for an unknown source.
        """
        self._sources = checked_sources(sources)

    def __call__(
        self, *, completions: Column, answers: Column | None = None, answer: Column | None = None, **columns: object
    ) -> list[float | Failed | None]:
        """Return one value a completion; None for a picture, or without annotators' answers."""
        nothing = [None] * len(completions)
        rows = zip(completions, answers or nothing, answer or nothing, strict=True)
        return [self._score(completion_text(completion), given, single) for completion, given, single in rows]

    def _score(self, text: str | None, several: object, single: object) -> float | Failed | None:
        try:
            annotated = [text_of(gold) for gold in golds_of(several) or golds_of(single)]
        except ValueError as error:
            return Failed(str(error))
        if text is None or not annotated:
            return None
        given = extract_answer(text, self._sources)
        return 0.0 if given is None else soft_accuracy(given.text, annotated)


def soft_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Return the accuracy of one answer against those of the annotators."""
    wanted = normalize_vqa(answer)
    agreeing = [normalize_vqa(other) == wanted for other in annotated]
    if len(agreeing) == 1:
        return float(agreeing[0])
    enough = min(NUM_AGREEING, len(agreeing) - 1)
    total = sum(agreeing)
    return sum(min(1.0, (total - own) / enough) for own in agreeing) / len(agreeing)


def normalize_vqa(answer: str) -> str:
    """Return an answer as VQA's evaluation compares it.

    A punctuation sign is dropped where it touches a blank anywhere in the answer, or where the answer has a comma
    between digits; else it becomes a blank. A full stop stays in front of a digit only. An answer of which nothing
    would be left is only put in lower case.
    """
    text = " ".join(without_dress(without_format_signs(answer)).split())
    text = _MEANT.sub(lambda match: match[0].translate(_KEPT), text)
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    changed = text
    for sign in _PUNCTUATION:
        is_dropped = has_digit_comma or f"{sign} " in text or f" {sign}" in text
        changed = changed.replace(sign, "" if is_dropped else " ")
    words = [
        _NUMBER_WORDS.get(word, word) for word in _FULL_STOP.sub("", changed).translate(_KEPT_BACK).lower().split()
    ]
    return (
        " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
        or text.translate(_KEPT_BACK).lower()
    )
