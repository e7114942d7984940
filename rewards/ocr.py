"""OCR: does a generated picture show the asked text, and nothing else?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from unigrpo.plugin import CodeReference
from unigrpo.rewards.base import Column
from unigrpo.rewards.vision.pictures import made_tool, picture_values

RAPIDOCR = "unigrpo.rewards.vision.recognizer_rapidocr:RapidOcrRecognizer"
MAX_TARGET_LENGTH = 1000
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


class Recognizer(Protocol):
    """Reads pictures."""

    def __call__(self, pictures: Sequence[Image.Image]) -> Sequence[Sequence[str]]:
        """Return the lines of each 8-bit RGB picture, in reading order; none where there is no text."""


class Ocr:
    """1 minus the edits from what is read to what was asked, as a share of what was asked; never below 0.

    Text that nobody asked for is edits, too: a picture tiled with the target scores 0, where a test for containment
    would give it everything. Case and spaces do not count (unless set so), typographic quotes and dashes are plain.

    Range: 0 to 1.
    Needs: generated pictures (task imagine); column ``text``, what the picture should say; the extra ``ocr`` for the
        default recogniser, whose models come with the package.
    Source: normalised edit distance, as in flow_grpo's OCR reward (arXiv 2505.05470) but for the extra text; PP-OCR
        models through rapidocr (Apache-2.0).
    Cost: about 0.3 s a picture of 512 x 512 on one core; the edit distance is bounded by the target's length.
    Hacked by: flat black lettering on white whatever else the prompt asks; log an aesthetic reward beside it.
    Recipe:
        ocr: {use: "unigrpo.rewards.ocr:Ocr", tasks: [imagine], timeout_s: 300}
    """

    range = (0.0, 1.0)
    wanted_columns = ("text",)
    needed_columns = (("text",),)
    is_deterministic = True

    def __init__(
        self,
        *,
        recognizer: CodeReference | Recognizer = RAPIDOCR,
        recognizer_arguments: Mapping[str, Any] | None = None,
        is_case_sensitive: bool = False,
        counts_spaces: bool = False,
    ) -> None:
        """Make the recogniser.

        Args:
            recognizer: ``"module:Class"`` or an object, see :class:`Recognizer`.
            recognizer_arguments: for the constructor of one that is named.
            is_case_sensitive: whether ``Open`` for ``OPEN`` is three edits.
            counts_spaces: whether words run together cost; recognisers are unsure of spaces.

        Raises:
            ImportError: with the line to install it, if the recogniser's package is missing.
            PluginError: if there is no such recogniser.
        """
        self._recognizer: Recognizer = made_tool(recognizer, recognizer_arguments)
        self._is_case_sensitive, self._counts_spaces = is_case_sensitive, counts_spaces

    def __call__(
        self, *, completions: Column, text: Column | None = None, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """Return one value a completion; None for text, and where no text is asked; 0 for a picture without pixels.

        Raises:
            ValueError: for a target of more than 1,000 characters, or a recogniser that loses a picture.
        """
        targets = [self._target(target) for target in text or [None] * len(completions)]

        def score(pictures: dict[int, Image.Image]) -> list[float]:
            read = self._recognizer(list(pictures.values()))
            if len(read) != len(pictures):
                raise ValueError(
                    f"the recogniser returned {len(read)} lists for {len(pictures)} pictures; wanted one list of lines "
                    "each"
                )
            return [
                likeness(self._normal(" ".join(lines)), str(targets[row]))
                for row, lines in zip(pictures, read, strict=True)
            ]

        asked = [bool(target) for target in targets]
        return picture_values(completions, score, refused=0.0, asked=asked, log_metric=log_metric)

    def _target(self, target: Any) -> str | None:
        if target is None:
            return None
        if len(str(target)) > MAX_TARGET_LENGTH:
            raise ValueError(f"a text of {len(str(target))} characters; give at most {MAX_TARGET_LENGTH}")
        return self._normal(str(target))

    def _normal(self, text: str) -> str:
        plain = unicodedata.normalize("NFKC", text).translate(_QUOTES)
        plain = re.sub(r"\s+", " " if self._counts_spaces else "", plain).strip()
        return plain if self._is_case_sensitive else plain.casefold()


def likeness(read: str, target: str) -> float:
    """Return 1 - min(d, len) / len, with d the Levenshtein distance and len the target's length, which is above 0."""
    length = len(target)
    if abs(len(read) - length) >= length:  # So many insertions, or nothing read: no need to look closer.
        return 0.0
    return 1 - min(edit_distance(read, target), length) / length


def edit_distance(first: str, second: str) -> int:
    """Return the fewest insertions, deletions and substitutions of one character that turn one text into the other."""
    row = list(range(len(second) + 1))
    for num_read, given in enumerate(first, start=1):
        above_left, row[0] = row[0], num_read
        for column, wanted in enumerate(second, start=1):
            above = row[column]
            row[column] = min(above + 1, row[column - 1] + 1, above_left + (given != wanted))
            above_left = above
    return row[-1]
