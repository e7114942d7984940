"""Run something long in front of the user: phases and steps shown, and what to do after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from unigrpo.cli.live import make_observer
from unigrpo.runs.trackers.base import Observer


def follow(start: Callable[[Observer], object], run_dir: Path, num_steps: int) -> None:
    """Run `start` with an observer and say where the run lies.

    Args:
        start: loads torch and runs.
        run_dir: of the run.
        num_steps: learner steps of the run, for the time that is left.
    """
    console = Console()
    try:
        with make_observer(console, num_steps) as observer:
            observer.phase("loading torch")
            start(observer)
    except KeyboardInterrupt:
        if (run_dir / "recipe.yaml").is_file():
            _say(console, f"interrupted; go on with: unigrpo resume {run_dir}")
        raise
    _say(console, f"run directory: {run_dir}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
