"""Sudoku: the fraction of the puzzle's blank cells that the answer fills as the solution does."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import after_thinking, completion_text, cut_at_eos
from unigrpo.rewards.text.boxes import read_boxes

_LOGGER = logging.getLogger(__name__)

_OTHER_BLANKS = str.maketrans("._*", "000")
_SEPARATORS = re.compile(r"[\s|,;+\[\]-]+")
_DENIED = re.compile(r"(?i)(?:\bnot|n't)[\s:*`]*$")
_OPEN = re.compile(r"(?i)\b(?:or|not)\b|n't\b")
_CONTEXT = 40
_MAX_SCANNED = 20_000
"""Characters of a prompt or an answer that are read."""


class Sudoku:
    r"""Blank cells filled right, over blank cells.

    The answer is the last ``<answer>`` (what follows ``</answer>`` where nothing stands before it), else the last
    ``\boxed{}``, else the last run of as many digits as there are cells. Its cells are compared by position, so
    separators are dropped, missing cells are wrong and surplus ones are not read. The puzzle is the last run of cells
    in the prompt, ``0`` or ``.`` for a blank, whose given cells agree with the solution: examples in a prompt of
    several shots do not.

    Range: 0 to 1.
    Needs: the puzzle in the prompt (or a column ``puzzle``), the solution in column ``answer`` or ``solution``; texts
        or lists of digits, of rows or of lists, any size up to 9 by 9.
    Source: d1 (arXiv 2504.12216), section 4.
    Cost: 30 microseconds.
    Hacked by: one digit everywhere, which is right in a quarter of the blank cells of a 4 by 4 puzzle; copying the
        puzzle gives 0. ``needs_givens`` stops the first.
    Recipe:
        sudoku: {use: "unigrpo.rewards.sudoku:Sudoku", arguments: {needs_givens: false}, timeout_s: 5}
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer", "solution", "puzzle")
    needed_columns = (("answer",), ("solution",))
    is_deterministic = True

    def __init__(self, *, needs_givens: bool = False) -> None:
        """Set up.

        Args:
            needs_givens: whether an answer that changes a given cell gets 0 (d1 does not look at given cells).
        """
        self._needs_givens = needs_givens
        self._has_warned = False

    def __call__(
        self,
        *,
        prompts: Column,
        completions: Column,
        answer: Column | None = None,
        solution: Column | None = None,
        puzzle: Column | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Return one value a completion; None for a picture, or where puzzle or solution are not there."""
        nothing = [None] * len(completions)
        rows = zip(completions, prompts, puzzle or nothing, answer or nothing, solution or nothing, strict=True)
        return [
            self._score(completion_text(text), prompt if given is None else given, second if first is None else first)
            for text, prompt, given, first, second in rows
        ]

    def _score(self, text: str | None, prompt: object, solution: object) -> float | None:
        wanted = _SEPARATORS.sub("", grid_text(solution))
        prompt_text = completion_text(prompt) or grid_text(prompt)
        if text is None or not prompt_text or not wanted.isdecimal():
            return None
        puzzle = find_puzzle(prompt_text, wanted)
        blanks = [] if puzzle is None else [cell for cell, digit in enumerate(puzzle) if digit == "0"]
        if puzzle is None or not blanks:
            if not self._has_warned:
                self._has_warned = True
                missing = "no puzzle of %d cells with this solution in the prompt %.80r (this is said once)"
                _LOGGER.warning(missing, len(wanted), prompt_text)
            return None
        given = read_cells(text, len(wanted))
        if self._needs_givens and any(
            digit != "0" and given[cell : cell + 1] != digit for cell, digit in enumerate(puzzle)
        ):
            return 0.0
        return sum(given[cell : cell + 1] == wanted[cell] for cell in blanks) / len(blanks)


def grid_text(grid: object) -> str:
    """Return a grid as text: a text as it is, a number or a list of rows by its digits, an empty cell as 0."""
    if isinstance(grid, Sequence) and not isinstance(grid, str):
        return " ".join(grid_text(cell) or "0" for cell in grid)
    return "" if grid is None or isinstance(grid, bool | float) else str(grid)


def find_puzzle(prompt: str, solution: str) -> str | None:
    """Return the last run of cells in a prompt that has blanks and whose given digits are the solution's.

    Blanks are ``0``, in what comes back too; other signs for them are tried second, as a full stop may end a sentence.
    """
    text = prompt[-_MAX_SCANNED:]
    return _find_run(text, solution) or _find_run(text.translate(_OTHER_BLANKS), solution)


def _find_run(text: str, solution: str) -> str | None:
    cells = [(index, sign) for index, sign in enumerate(text) if sign in "0123456789"]
    digits = "".join(sign for _, sign in cells)
    for start in range(len(digits) - len(solution), -1, -1):
        run = digits[start : start + len(solution)]
        if "0" in run and all(sign in ("0", digit) for sign, digit in zip(run, solution, strict=True)):
            first, last = cells[start][0], cells[start + len(solution) - 1][0]
            if not _SEPARATORS.sub("", text[first : last + 1]).strip("0123456789"):
                return run
    return None


def read_cells(completion: str, num_cells: int) -> str:
    """Return the cells of an answer, at most ``num_cells``, separators dropped."""
    text = after_thinking(cut_at_eos(completion))[-_MAX_SCANNED:]
    answer = _marked(text)
    if answer is None:
        runs = [run for run in re.finditer(r"[0-9]+", text) if len(run[0]) == num_cells]
        answer = runs[-1][0] if runs and not _DENIED.search(text[: runs[-1].start()][-_CONTEXT:]) else ""
    if _OPEN.search(answer):
        return ""
    answer = answer.replace("*", "").replace("`", "")
    return _SEPARATORS.sub("", answer)[:num_cells]


def _marked(text: str) -> str | None:
    start = text.rfind("<answer>")
    if start >= 0:
        answer, _, rest = text[start + len("<answer>") :].partition("</answer>")
        answer = (answer if answer.strip() else rest).strip()
        boxes = read_boxes(answer)
        return answer if boxes is None else boxes.answer or ""
    boxes = read_boxes(text)
    if boxes is not None:
        return boxes.answer or ""
    _, tag, rest = text.rpartition("</answer>")
    return rest if tag and rest.strip() else None
