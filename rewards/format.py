"""Format: is the completion laid out as asked? One pass of ``str.find`` a tag, so a megabyte costs milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from unigrpo.rewards.answers import completion_text, cut_at_eos

FormatStyle = Literal["think", "think_answer", "reasoning_answer", "tag_count"]

DEFAULT_MASK_TEXTS = ("<|mdm_mask|>", "<|mask|>", "[MASK]")


class Format:
    """1 for a well-formed completion, else 0 (``tag_count``: a quarter for each of four tags).

    Styles, each with every tag exactly once and in order, and nothing still masked:

    - ``think``: ``<think>…</think>`` at the start, then an answer that is not empty (TRL's ``think_format_reward``,
      which also takes an empty answer and a second ``</think>``).
    - ``think_answer``: ``<think>…</think>``, then ``<answer>…</answer>`` that ends the text (open-r1; its fixed
      newlines are not asked for).
    - ``reasoning_answer``: the same with ``<reasoning>`` (d1's soft and strict formats, whose expressions miss
      reasoning of several lines and so never fire on it).
    - ``tag_count``: a quarter for each of ``<think>``, ``</think>``, ``<answer>``, ``</answer>`` that occurs exactly
      once (open-r1's partial credit). d1's penalty per trailing character is left out: it measures padding.

    Text behind the first end-of-sequence marker is filler and is not judged.
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ()

    def __init__(
        self,
        style: FormatStyle = "think",
        *,
        is_open_given: bool = False,
        needs_answer: bool = True,
        mask_texts: Sequence[str] = DEFAULT_MASK_TEXTS,
    ) -> None:
        """Set up.

        Args:
            style: which layout.
            is_open_given: whether the chat template already wrote the first opening tag, so that the completion
                starts behind it.
            needs_answer: whether text that is not blank must follow the reasoning.
            mask_texts: what a position that was never filled decodes to; any of them is a failure.

        Raises:
            ValueError: for an unknown style.
        """
        judges: dict[str, Callable[[str], float]] = {
            "think": lambda text: self._is_section_then_answer(text, "think"),
            "think_answer": lambda text: self._is_two_sections(text, "think"),
            "reasoning_answer": lambda text: self._is_two_sections(text, "reasoning"),
            "tag_count": _tag_fraction,
        }
        if style not in judges:
            raise ValueError(f"format style {style!r} is unknown; give one of {sorted(judges)}")
        self._judge = judges[style]
        self._given = {"reasoning_answer": "<reasoning>"}.get(style, "<think>") if is_open_given else ""
        self._needs_answer = needs_answer
        self._mask_texts = tuple(mask_texts)

    def __call__(self, *, completions: Sequence[Any], **columns: object) -> list[float | None]:
        """Return one value a completion; None for a picture."""
        return [self._score(completion_text(completion)) for completion in completions]

    def _score(self, text: str | None) -> float | None:
        if text is None:
            return None
        text = self._given + cut_at_eos(text)
        if any(mask in text for mask in self._mask_texts):
            return 0.0
        return float(self._judge(text.strip()))

    def _is_section_then_answer(self, text: str, tag: str) -> bool:
        rest = _after_section(text, tag)
        return rest is not None and (bool(rest.strip()) or not self._needs_answer)

    def _is_two_sections(self, text: str, tag: str) -> bool:
        rest = _after_section(text, tag)
        if rest is None:
            return False
        end = _after_section(rest.strip(), "answer")
        is_empty = not rest.replace("<answer>", "").replace("</answer>", "").strip()
        return end is not None and not end.strip() and not (is_empty and self._needs_answer)


def _after_section(text: str, tag: str) -> str | None:
    """Return what follows ``<tag>…</tag>`` at the start; None unless each tag occurs once, the opening one first."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if not text.startswith(opening) or text.count(opening) != 1 or text.count(closing) != 1:
        return None
    return text[text.find(closing) + len(closing) :]


def _tag_fraction(text: str) -> float:
    return sum(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")) / 4
