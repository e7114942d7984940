"""Run something long in front of the user: phases and steps shown, and what to do after Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import typer

from unigrpo.errors import UserError
from unigrpo.runs.trackers.terminal import Terminal


class Followed:
    """A block in which a run goes on: gives a tracker that shows it, and says in the end where the run lies."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._terminal = run_dir, Terminal()

    def __enter__(self) -> Terminal:
        """Show that the block loads torch."""
        self._terminal.phase("loading torch")
        return self._terminal

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Say how to go on after an interrupt, and add the run directory, where it is left, to a traceback."""
        self._terminal.close()
        if error is None:
            typer.echo(f"run directory: {self._run_dir}")
        elif isinstance(error, KeyboardInterrupt) and (self._run_dir / "recipe.yaml").is_file():
            typer.echo(f"interrupted; go on with: unigrpo resume {self._run_dir}")
        elif isinstance(error, Exception) and not isinstance(error, UserError) and self._run_dir.exists():
            error.add_note(f"The run directory is {self._run_dir}")
