r"""Find the final answer in a completion: linear-time scanning, because the text may be a megabyte of hostile braces.

Order: the last balanced ``\boxed{}`` after the final ``</think>``, else the last ``<answer>…</answer>``, else what
follows the last ``####`` (GSM8K), else the text after ``</think>`` or ``</reasoning>`` itself: reasoning is not an
answer. A reward may leave out any of the four. Text behind the first end-of-sequence marker is filler of block decoding
and never read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unigrpo.data.jsonl import as_text

EOS_TEXTS = tuple("<|endoftext|> <|eot_id|> <|im_end|> <|end_of_text|> <|role_end|> <end_of_turn> <eos> </s>".split())
PAD_TEXTS = ("<pad>", "<|pad|>", "[PAD]")
MAX_ANSWER_LENGTH = 1000
"""Characters of a boxed or tagged answer; a longer one is not an answer and counts as none."""
MAX_TAIL_LENGTH = 4000
"""Characters of unmarked text that are kept, from its end."""

_EXACT = 2**53
"""Below it a float holds each whole number."""
_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_BRACE_OR_ESCAPE = re.compile(r"\\[{}\\]|[{}]")
_BOX_COMMANDS = ("boxed", "\\fbox")
"""Policies drop the backslash of ``\\boxed{}`` now and then; braces tell it from prose."""

AnswerSource = Literal["box", "tag", "hashes", "text"]
ALL_SOURCES: tuple[AnswerSource, ...] = get_args(AnswerSource)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a completion says in the end."""

    text: str
    source: AnswerSource
    """``text`` is unmarked prose: the answer stands somewhere near its end."""


TextUnit = Literal["tokens", "words", "characters"]
"""What the length of a text is counted in."""


def completion_text(completion: object) -> str | None:
    """Return the text of a completion: a string, or the last message of a conversation; None for anything else."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion:
        completion = completion[-1]
    if isinstance(completion, Mapping):
        content: Any = completion.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence):
            return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return None


def cut_at_eos(text: str) -> str:
    """Return the text before the first end-of-sequence or padding marker."""
    positions = [position for eos in (*EOS_TEXTS, *PAD_TEXTS) if (position := text.find(eos)) >= 0]
    return text[: min(positions)] if positions else text


def checked_unit(unit: TextUnit) -> TextUnit:
    """Return the unit.

    Raises:
        ValueError: for an unknown one.
    """
    if unit not in get_args(TextUnit):
        raise ValueError(f"unit {unit!r} is unknown; give tokens, words or characters")
    return unit


def units_of(
    completion: object, token_ids: Sequence[int] | None, unit: TextUnit, *, is_lowered: bool = False
) -> Sequence[int | str] | None:
    """Return the units of a text up to its end of sequence; None for a picture, and for tokens without their ids.

    Args:
        completion: the text.
        token_ids: its tokens, where they are known.
        unit: what is counted.
        is_lowered: whether words and characters lose their case.
    """
    text = completion_text(completion)
    if text is None or unit == "tokens":
        return None if text is None else token_ids
    text = cut_at_eos(text).lower() if is_lowered else cut_at_eos(text)
    return text.split() if unit == "words" else text


def after_thinking(text: str) -> str:
    """Return the text after the final ``</think>``; all of it where there is none."""
    return _after_last(text, "</think>")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last balanced ``\boxed{…}`` (or ``\boxed x``), None where there is none.

    One pass pairs all braces (escaped ones do not count), so that 20,000 unclosed boxes cost no more than one.
    """
    starts = [match.end() for command in _BOX_COMMANDS for match in re.finditer(re.escape(command), text)]
    if not starts:
        return None
    closing = _closing_braces(text)
    for start in sorted(starts, reverse=True):
        opening = start
        while opening < len(text) and text[opening] in " \t\n":
            opening += 1
        if opening < len(text) and text[opening] == "{":
            if opening in closing:
                return text[opening + 1 : closing[opening]]
        elif opening > start and text[max(start - 6, 0) : start] == "\\boxed":
            token = text[opening : opening + MAX_ANSWER_LENGTH].split(maxsplit=1)
            if token:
                return token[0].rstrip(".$,;")
    return None


def checked_sources(sources: Collection[str]) -> tuple[AnswerSource, ...]:
    """Return the places to look for an answer, in the one order there is.

    Raises:
        ValueError: for none, or an unknown one.
    """
    unknown = sorted(set(sources) - set(ALL_SOURCES))
    if unknown or not sources or isinstance(sources, str):
        raise ValueError(f"answer sources {sources!r} are not understood; give a list of some of {list(ALL_SOURCES)}")
    return tuple(source for source in ALL_SOURCES if source in sources)


def extract_answer(completion: str, sources: Collection[AnswerSource] = ALL_SOURCES) -> Answer | None:
    """Return the final answer of a completion; None where it is empty, too long, or a box that is never closed."""
    text = after_thinking(cut_at_eos(completion))
    if "box" in sources:
        boxed = last_boxed(text)
        if boxed is not None or "\\boxed" in text:
            return _bounded(boxed, "box")
    if "tag" in sources:
        tagged = _last_tag(text)
        if tagged is not None:
            return _bounded(tagged, "tag")
    if "hashes" in sources and "####" in text:
        return _bounded(text[text.rfind("####") + 4 :].strip().partition("\n")[0], "hashes")
    if "text" not in sources:
        return None
    tail = _after_last(text, "</reasoning>")[-MAX_TAIL_LENGTH:].strip()
    return Answer(text=tail, source="text") if tail else None


def gold_answer(answer: object) -> str | None:
    r"""Return the answer column as text; GSM8K's ``… #### 42`` and ``\boxed{}`` solutions are cut to the answer."""
    if answer is None:
        return None
    text = as_text(answer)
    if "####" in text:
        text = text[text.rfind("####") + 4 :]
    elif "\\boxed" in text:
        text = last_boxed(text) or text
    return text.strip() or None


def _after_last(text: str, marker: str) -> str:
    return text[text.rfind(marker) + len(marker) :] if marker in text else text


def _closing_braces(text: str) -> dict[int, int]:
    """Return opening index -> index of its closing brace."""
    closing: dict[int, int] = {}
    open_braces: list[int] = []
    for match in _BRACE_OR_ESCAPE.finditer(text):
        if match.group() == "{":
            open_braces.append(match.start())
        elif match.group() == "}" and open_braces:
            closing[open_braces.pop()] = match.start()
    return closing


def _last_tag(text: str) -> str | None:
    """Return what the last ``<answer>`` holds, up to ``</answer>`` or the end; None without one."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0] if tag else None


def _bounded(text: str | None, source: AnswerSource) -> Answer | None:
    """Return an answer within the length cap; None for nothing, blanks, or more than the cap."""
    text = (text or "").strip()
    return Answer(text=text, source=source) if 0 < len(text) <= MAX_ANSWER_LENGTH else None
