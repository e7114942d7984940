"""Run something long in front of the user: phases and steps shown, and what to do after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import typer

from unigrpo.runs.trackers.base import Tracker
from unigrpo.runs.trackers.terminal import Terminal


def follow(start: Callable[[Tracker], object], run_dir: Path) -> None:
    """Run `start` with a tracker that shows the run, and say where the run lies.

    Args:
        start: loads torch and runs.
        run_dir: of the run.
    """
    try:
        with closing(Terminal()) as terminal:
            terminal.phase("loading torch")
            start(terminal)
    except KeyboardInterrupt:
        if (run_dir / "recipe.yaml").is_file():
            typer.echo(f"interrupted; go on with: unigrpo resume {run_dir}")
        raise
    typer.echo(f"run directory: {run_dir}")
