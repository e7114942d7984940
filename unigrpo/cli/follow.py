"""Run something long in front of the user: phases and steps shown, and what to do after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import typer

from unigrpo.errors import UserError
from unigrpo.runs.trackers.base import Tracker
from unigrpo.runs.trackers.terminal import Terminal


def follow(start: Callable[[Tracker], object], run_dir: Path) -> None:
    """Run `start` with a tracker that shows the run, and say where the run lies.

    Args:
        start: loads torch and runs.
        run_dir: of the run.
    """
    try:
        with _RunNamed(run_dir), closing(Terminal()) as terminal:
            terminal.phase("loading torch")
            start(terminal)
    except KeyboardInterrupt:
        if (run_dir / "recipe.yaml").is_file():
            typer.echo(f"interrupted; go on with: unigrpo resume {run_dir}")
        raise
    typer.echo(f"run directory: {run_dir}")


class _RunNamed:
    """Adds the run directory, where it is left, to the traceback of an error."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def __enter__(self) -> None:
        """Watch the block."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Add the note."""
        if isinstance(error, Exception) and not isinstance(error, UserError) and self._run_dir.exists():
            error.add_note(f"The run directory is {self._run_dir}")
