"""Run something long in front of the user: phases and steps shown, and what to do after Ctrl-C."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import typer

from unigrpo.errors import StorageError, UserError
from unigrpo.runs.stopping import Stopped
from unigrpo.runs.trackers.terminal import Terminal


class Followed:
    """A block in which a run goes on: gives a tracker that shows it, and says in the end where the run lies."""

    def __init__(self, run_dir: Path, *, is_made_here: bool = False) -> None:
        """Take the run directory, and whether the command made it, so that it goes where nothing came of it."""
        self._run_dir, self._is_made_here, self._terminal = run_dir, is_made_here, Terminal()

    def __enter__(self) -> Terminal:
        """Show that the block loads torch."""
        self._terminal.phase("loading torch")
        return self._terminal

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Say how to go on after an interrupt, and add the run directory, where it is left, to a traceback."""
        self._terminal.close()
        has_run = (self._run_dir / "recipe.yaml").is_file()
        if error is None:
            say(f"run directory: {self._run_dir}")
        elif isinstance(error, KeyboardInterrupt):
            how = str(error) or "interrupted"
            if has_run:
                say(f"{how}; go on with: unigrpo resume {self._run_dir}")
            else:
                say(f"{how} before there was a result; nothing is left of it: give the same command again")
            if isinstance(error, Stopped):
                error.is_said = True
        elif isinstance(error, StorageError) and has_run:
            say(f"what is done is kept; go on, once there is room, with: unigrpo resume {self._run_dir}")
        elif isinstance(error, Exception) and not isinstance(error, UserError) and self._run_dir.exists():
            error.add_note(f"The run directory is {self._run_dir}")
        if error is not None and self._is_made_here and not has_run:
            with suppress(OSError):  # It holds something after all.
                self._run_dir.rmdir()


def say(line: str) -> None:
    """Write a line for whoever still reads it."""
    with suppress(OSError):
        typer.echo(line)
