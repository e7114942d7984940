"""The report of a run, written when it ends.

Pages are made from whole runs and stand above them, so this file does not import them: what writes the page is a name
of code, as a recipe's `use` is, and is looked up when the run is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.errors import UserError
from unigrpo.plugin import CodeReference, resolve
from unigrpo.runs.trackers.base import Tracker
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe


class Report(Tracker):
    """Writes ``report.html`` into the run directory."""

    failures = (OSError, UserError)

    def __init__(self, writer: CodeReference = "unigrpo.report.write:write_report") -> None:
        """Take the name of the function that writes the page.

        ``writer`` names a function that is called with a list of run directories and the file to write.
        """
        self._writer = writer
        self._run_dir = Path()

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Keep where the run is."""
        self._run_dir = run_dir

    def done(self, summary: Mapping[str, Any]) -> None:
        """Write the page."""
        write: Any = resolve(self._writer)
        write([self._run_dir], self._run_dir / "report.html")
