r"""Find the final answer in a completion: linear-time scanning, because the text may be a megabyte of hostile braces.

Order: the last ``\boxed{}`` after the final ``</think>``, else the last ``<answer>…</answer>``, else what
follows the last ``####`` (GSM8K), else the text after ``</think>`` or ``</reasoning>`` itself: reasoning is not an
answer. A box or tag that is opened last and never closed is an answer cut off, and counts as none, whatever stood
before. A reward may leave out any of the four. Text behind the first end-of-sequence marker is filler of block decoding
and never read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unigrpo.rewards.text.boxes import last_boxed, read_boxes
from unigrpo.rewards.text.golds import golds_of, text_of
from unigrpo.rewards.text.refusals import is_refused

EOS_TEXTS = tuple("<|endoftext|> <|eot_id|> <|im_end|> <|end_of_text|> <|role_end|> <end_of_turn> <eos> </s>".split())
PAD_TEXTS = ("<pad>", "<|pad|>", "[PAD]")
MAX_ANSWER_LENGTH = 1000
"""Characters of a boxed or tagged answer; a longer one is not an answer and counts as none."""
MAX_TAIL_LENGTH = 4000
"""Characters of unmarked text that are kept, from its end."""

_STRUCK_OUT = re.compile(r"~~(?=[^\s~])[^~\\$\n]{1,200}~~")

AnswerSource = Literal["box", "tag", "hashes", "text"]
ALL_SOURCES: tuple[AnswerSource, ...] = get_args(AnswerSource)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a completion says in the end."""

    text: str
    source: AnswerSource
    """``text`` is unmarked prose: the answer stands somewhere near its end."""
    asked: tuple[str, ...] = ()
    """The boxes of a text that has several, for a question of several parts; ``text`` is the last."""


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
    """Return the final answer of a completion; None where it is empty, too long, or marked by what is never closed."""
    text = _said(cut_at_eos(completion))
    if "tag" in sources and (opened := text.rfind("<answer>")) > text.rfind("</answer>"):
        text = text[opened:]  # What stands before is no answer any more; a box in it is.
    if "box" in sources and (boxes := read_boxes(text)) is not None:
        return _bounded(boxes.answer, "box", boxes.asked)
    if "tag" in sources and "<answer>" in text:
        return _bounded(_last_tag(text), "tag")
    if "hashes" in sources and "####" in text:
        return _bounded(_last_hashes(text), "hashes")
    if "text" not in sources:
        return None
    tail = _after_last(text, "</reasoning>")[-MAX_TAIL_LENGTH:].strip()
    return Answer(text=tail, source="text") if tail else None


def _said(text: str) -> str:
    """Return what is no thought: the text after the final ``</think>``, without a thought that is never closed.

    What is struck out in Markdown (``~~5~~``) is not said; with a formula around them, the signs are blanks of LaTeX.

    A thought that goes over into ``<answer>`` ends there.
    """
    text = _STRUCK_OUT.sub("", after_thinking(text))
    said, thought, rest = text.partition("<think>")
    if not thought:
        return text
    _, tag, answer = rest.partition("<answer>")
    return f"{said}{tag}{answer}"


def gold_answer(answer: object) -> str | None:
    r"""Return an answer as text; GSM8K's ``… #### 42`` and ``\boxed{}`` solutions are cut to the answer."""
    if answer is None:
        return None
    text = text_of(answer) if isinstance(answer, bool | int | float) else str(answer)
    if "####" in text:
        text = text[text.rfind("####") + 4 :]
    elif "\\boxed" in text:
        text = last_boxed(text) or text
    return text.strip() or None


def gold_answers(answer: object) -> list[str]:
    """Return the gold answers that a column accepts, any of which is right; none where it is empty.

    Raises:
        ValueError: for an object without an answer under a name that is known.
    """
    return [gold for one in golds_of(answer) if (gold := gold_answer(one)) is not None]


def _after_last(text: str, marker: str) -> str:
    return text[text.rfind(marker) + len(marker) :] if marker in text else text


def _last_tag(text: str) -> str | None:
    """Return what the last ``<answer>`` holds; None if it is never closed, or the words next to it refuse it."""
    before, tag, rest = text.rpartition("<answer>")
    inside, end, _ = rest.partition("</answer>")
    start = len(before)
    return inside if end and not is_refused(text, start, start + len(tag + inside + end), inside) else None


def _last_hashes(text: str) -> str | None:
    """Return the line behind the last ``####``; None if what follows refuses it."""
    rest = text.rpartition("####")[2].strip()
    line = rest.partition("\n")[0]
    return None if is_refused(rest, 0, len(line), line) else line


def _bounded(text: str | None, source: AnswerSource, asked: tuple[str, ...] = ()) -> Answer | None:
    """Return an answer within the length cap; None for nothing, blanks, or more than the cap."""
    text = (text or "").strip()
    return Answer(text=text, source=source, asked=asked) if 0 < len(text) <= MAX_ANSWER_LENGTH else None
