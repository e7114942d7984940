"""What a program is asked: the program found in a completion, and its tests read from a data set's columns."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.documents import parse_json
from unigrpo.rewards.text.answers import after_thinking, cut_at_eos

_LOGGER = logging.getLogger(__name__)

MAX_PROGRAM_LENGTH = 100_000
"""Characters; a longer one is no answer."""
COLUMNS = ("tests", "setup", "inputs", "outputs", "entry_point", "cases")
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)$", re.MULTILINE)
_LANGUAGES = ("python", "py", "python3")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeTests:
    """The tests of one prompt; just one of the three kinds is there."""

    tests: tuple[str, ...] = ()
    """Lines (or blocks) of Python that must not raise."""
    setup: str = ""
    """Python that runs before the program and before the tests."""
    entry_point: str = ""
    """The function to call, or ``Class.method``."""
    cases: tuple[tuple[list[Any], Any], ...] = ()
    """Arguments and wanted value of a call."""
    runs: tuple[tuple[str, str], ...] = ()
    """Standard input and wanted output of a run."""

    @property
    def num_tests(self) -> int:
        """Return how many there are."""
        return len(self.tests) + len(self.cases) + len(self.runs)


def extract_program(completion: str) -> str | None:
    """Return the last closed fenced Python block after the final ``</think>``, None where there is none.

    A block of no named language counts as Python; one that is cut off before its closing fence does not count.
    """
    text = after_thinking(cut_at_eos(completion))
    program = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif not fence[1].strip():
            named = opening[1].split()[:1]
            if not named or named[0].lower() in _LANGUAGES:
                program = text[opening.end() + 1 : fence.start()]
            opening = None
    is_good = program is not None and program.strip() and len(program) <= MAX_PROGRAM_LENGTH
    return program if is_good else None


def read_tests(columns: Mapping[str, Any]) -> CodeTests | None:
    """Return the tests of one item, None where it has none or they cannot be read (which is logged)."""
    try:
        tests = _read_tests({name: value for name, value in columns.items() if value is not None})
    except (ValueError, TypeError, KeyError) as error:
        _LOGGER.warning("the tests of an item cannot be read and are left out: %s", error)
        return None
    return tests if tests.num_tests else None


def _read_tests(columns: Mapping[str, Any]) -> CodeTests:
    entry_point, setup = str(columns.get("entry_point", "")), str(columns.get("setup", ""))
    if columns.get("tests"):
        return CodeTests(tests=_texts(columns["tests"], "tests"), setup=setup, entry_point=entry_point)
    if columns.get("cases"):
        if not entry_point:
            raise ValueError("cases need entry_point, the name of the function to call")
        cases = tuple(_case(case) for case in _listed(columns["cases"], "cases"))
        return CodeTests(cases=cases, entry_point=entry_point, setup=setup)
    if columns.get("inputs"):
        inputs, outputs = _texts(columns["inputs"], "inputs"), _texts(columns.get("outputs", []), "outputs")
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs; give one output an input")
        return CodeTests(runs=tuple(zip(inputs, outputs, strict=True)))
    return CodeTests()


def _listed(value: Any, name: str) -> list[Any]:
    """Return a column's list, which may be written as JSON; a text that is none is a list of one."""
    if isinstance(value, str):
        try:
            read = parse_json(value)
        except ValueError:
            return [value]
        value = read if isinstance(read, list) else [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}; give a list")
    return list(value)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    items = _listed(value, name)
    if wrong := [item for item in items if not isinstance(item, str)]:
        raise TypeError(f"{name} holds a {type(wrong[0]).__name__}; give texts")
    return tuple(items)


def _case(case: Any) -> tuple[list[Any], Any]:
    """Return arguments and wanted value of ``{"input": [...], "output": …}`` or ``[[...], …]``."""
    given, wanted = (case["input"], case["output"]) if isinstance(case, Mapping) else case
    if not isinstance(given, list):
        raise TypeError(f"a case's input is a {type(given).__name__}; give the list of arguments")
    return given, wanted
