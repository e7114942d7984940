"""Format: is the completion laid out as asked? One pass of ``str.find`` a tag, so a megabyte costs milliseconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from unigrpo.rewards.text.answers import completion_text, cut_at_eos
from unigrpo.rewards.text.plain import is_blank, is_invisible, without_invisible_start

FormatVariant = Literal[
    "think",
    "think_answer",
    "reasoning_answer",
    "tag_count",
    "trl",
    "open_r1",
    "open_r1_tag_count",
    "d1_strict",
    "d1_soft",
    "d1_xml_count",
    "mmada",
]

DEFAULT_MASK_TEXTS = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>", "<mask>", "[MASK]")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_LIKE_A_TAG = {
    tag: re.compile(rf"<\s{{0,9}}/?\s{{0,9}}{tag}\b", re.IGNORECASE) for tag in ("think", "reasoning", "answer")
}
_CUT_OFF = {
    tag: re.compile(r"</?(?:" + "|".join(re.escape(tag[:end]) for end in range(len(tag), 0, -1)) + r")$|</$")
    for tag in _LIKE_A_TAG
}
_MAX_TAG = 12
_TAG_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
_D1_TAG_LINES = ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")
_D1_BORDER = re.compile(r"</reasoning>\s*<answer>")
_D1_PENALTY_A_CHARACTER = 0.001


class Format:
    r"""1 for a well-formed completion, else 0; the counting variants give parts of 1.

    Text behind the first end-of-sequence or padding marker is filler and is not judged; a mask token in front of it
    is a failure in every variant. Ours ask for every tag exactly once and in order; the published ones keep their
    authors' rule, with the value scaled to [0, 1] (the authors' amount is the recipe's weight). Characters that show
    nothing are blanks to ours: they are no answer. A byte order mark or zero-width character in front is passed over in
    every variant; to ours a tag of theirs that is cut off, has attributes or other case is a tag too many:

    - ``think``: ``<think>…</think>`` at the start, then an answer that is not empty.
    - ``think_answer``: ``<think>…</think>``, then ``<answer>…</answer>`` that ends the text; line breaks are free.
    - ``reasoning_answer``: the same with ``<reasoning>``.
    - ``tag_count``: a quarter for each of the four tags of ``think_answer`` that occurs exactly once.
    - ``trl``: TRL's ``think_format_reward``: ``<think>`` first and only once, ``</think>`` somewhere.
    - ``open_r1``: each tag of ``think_answer`` on a line of its own; text behind ``</answer>`` on later lines passes.
    - ``open_r1_tag_count``: a quarter for each of those tag lines that occurs exactly once.
    - ``d1_strict``, ``d1_soft``: ``<reasoning>`` and ``<answer>``, each tag on its own line and a final newline, or
      with free spacing. The dot of d1's own expressions stops at a newline, so they never match reasoning of several
      lines; here it does not.
    - ``d1_xml_count``: twice d1's count (an eighth a tag line, less 0.001 for each character behind ``</answer>``),
      and never below 0, where d1's has no bound.
    - ``mmada``: one ``<think>…</think>`` at the start; what follows is free.

    Range: 0 to 1.
    Needs: nothing but the completion; any text task.
    Source: TRL; open-r1; d1 (arXiv 2504.12216); MMaDA (arXiv 2505.15809: 0.5 beside 2.0 for correctness).
    Cost: microseconds; 8 ms a megabyte.
    Hacked by: empty or copied reasoning inside the right tags. Keep the weight small, or gate it on correctness.
    Recipe:
        format: {use: "unigrpo.rewards.format:Format", arguments: {variant: think_answer}, weight: 0.25}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ()
    is_deterministic = True

    def __init__(
        self,
        variant: FormatVariant = "think",
        *,
        is_open_given: bool = False,
        needs_answer: bool = True,
        mask_texts: Sequence[str] = DEFAULT_MASK_TEXTS,
    ) -> None:
        """Set up.

        Args:
            variant: which layout.
            is_open_given: whether the chat template already wrote the first opening tag, so that the completion
                starts behind it.
            needs_answer: whether text that is not blank must follow the reasoning (``think``, ``think_answer`` and
                ``reasoning_answer``).
            mask_texts: what a position that was never filled decodes to; any of them is a failure.

        Raises:
            ValueError: for an unknown variant.
        """
        if variant not in get_args(FormatVariant):
            raise ValueError(f"format variant {variant!r} is unknown; give one of {sorted(get_args(FormatVariant))}")
        judges: dict[str, Callable[[str], float]] = {
            "think": lambda text: self._is_section_then_answer(_shown(text), "think"),
            "think_answer": lambda text: self._is_two_sections(_shown(text), "think"),
            "reasoning_answer": lambda text: self._is_two_sections(_shown(text), "reasoning"),
            "tag_count": lambda text: _fraction_found_once(text, _TAGS),
            "trl": _is_trl_think,
            "open_r1": lambda text: _are_tags_on_lines(text, "think", is_end_strict=False),
            "open_r1_tag_count": lambda text: _fraction_found_once(text, _TAG_LINES),
            "d1_strict": lambda text: _are_tags_on_lines(text, "reasoning", is_end_strict=True),
            "d1_soft": _is_d1_soft,
            "d1_xml_count": _d1_xml_count,
            "mmada": lambda text: _after_section(_shown(text), "think") is not None,
        }
        self._judge = judges[variant]
        tag = "reasoning" if variant.startswith(("d1", "reasoning")) else "think"
        self._given = f"<{tag}>" if is_open_given else ""
        self._needs_answer = needs_answer
        self._mask_texts = tuple(mask_texts)

    def __call__(self, *, completions: Sequence[Any], **columns: object) -> list[float | None]:
        """Return one value a completion; None for a picture."""
        return [self._score(completion_text(completion)) for completion in completions]

    def _score(self, text: str | None) -> float | None:
        if text is None:
            return None
        text = self._given + without_invisible_start(cut_at_eos(text))
        if any(mask in text for mask in self._mask_texts):
            return 0.0
        return float(self._judge(text))

    def _is_section_then_answer(self, text: str, tag: str) -> bool:
        rest = _after_section(text, tag)
        return rest is not None and (not is_blank(rest) or not self._needs_answer)

    def _is_two_sections(self, text: str, tag: str) -> bool:
        rest = _after_section(text, tag)
        if rest is None or text.count("<answer>") != 1 or text.count("</answer>") != 1:
            return False
        end = _after_section(_shown(rest), "answer")
        is_empty = is_blank(rest.replace("<answer>", "").replace("</answer>", ""))
        return end is not None and is_blank(end) and not (is_empty and self._needs_answer)


def _shown(text: str) -> str:
    """Return a text without what shows nothing at its ends."""
    start, end = 0, len(text)
    while start < end and is_invisible(text[start]):
        start += 1
    while end > start and is_invisible(text[end - 1]):
        end -= 1
    return text[start:end]


def _after_section(text: str, tag: str) -> str | None:
    """Return what follows ``<tag>…</tag>`` at the start; None unless each tag occurs once, the opening one first."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if not text.startswith(opening) or text.count(opening) != 1 or text.count(closing) != 1:
        return None
    if len(re.findall(_LIKE_A_TAG[tag], text)) != 2 or _CUT_OFF[tag].search(text[-_MAX_TAG:]):
        return None
    return text[text.find(closing) + len(closing) :]


def _fraction_found_once(text: str, pieces: Sequence[str]) -> float:
    return sum(text.count(piece) == 1 for piece in pieces) / len(pieces)


def _is_trl_think(text: str) -> bool:
    opening = "<think>"
    return text.startswith(opening) and text.find(opening, 1) < 0 and text.find("</think>", len(opening)) >= 0


def _are_tags_on_lines(text: str, tag: str, *, is_end_strict: bool) -> bool:
    r"""Return whether ``<tag>\n…\n</tag>\n<answer>\n…\n</answer>`` starts the text (if strict: is it, and a newline).

    The first border between the sections leaves most to the second one, so no later border needs to be tried.
    """
    opening, border, closing = f"<{tag}>\n", f"\n</{tag}>\n<answer>\n", "\n</answer>"
    if not text.startswith(opening):
        return False
    start = text.find(border, len(opening))
    if start < 0:
        return False
    start += len(border)
    if is_end_strict:
        return any(text.endswith(closing + tail, start) for tail in ("\n", "\n\n"))
    return text.find(closing + "\n", start) >= 0 or text.endswith(closing, start)


def _is_d1_soft(text: str) -> bool:
    opening = "<reasoning>"
    border = _D1_BORDER.search(text, len(opening))
    return text.startswith(opening) and border is not None and border.end() <= text.rfind("</answer>")


def _d1_xml_count(text: str) -> float:
    # Split as d1 does, from the left: where closers share a newline, the last piece is longer than rpartition's.
    count = sum(text.count(line) == 1 for line in _D1_TAG_LINES) / 8
    if text.count("\n<answer>\n") == 1:
        count -= len(text.split("\n</answer>\n")[-1]) * _D1_PENALTY_A_CHARACTER
    if text.count("\n</answer>") == 1:
        count -= (len(text.split("\n</answer>")[-1]) - 1) * _D1_PENALTY_A_CHARACTER
    return min(max(2 * count, 0.0), 1.0)
