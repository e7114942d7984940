"""``unigrpo resume``: go on from the last checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unigrpo.cli.arguments import RunDir, existing_run

if TYPE_CHECKING:
    from unigrpo.runs.trackers.base import Tracker


def resume(run_dir: RunDir) -> None:
    """Go on with a run from its last whole checkpoint, be it `train` or `sft`."""
    from unigrpo.recipe.load import is_supervised

    existing_run(run_dir)
    if is_supervised(run_dir / "recipe.yaml"):
        _resume_supervision(run_dir)
    else:
        _resume_training(run_dir)


def _resume_training(run_dir: Path) -> None:
    from unigrpo.cli.follow import follow

    def start(tracker: Tracker) -> None:
        from unigrpo.train import resume as resume_training

        resume_training(run_dir, tracker)

    follow(start, run_dir)


def _resume_supervision(run_dir: Path) -> None:
    from unigrpo.cli.follow import follow
    from unigrpo.recipe.load import load_sft_recipe

    recipe = load_sft_recipe(run_dir / "recipe.yaml")

    def start(tracker: Tracker) -> None:
        from unigrpo.supervised.sft import run_sft

        run_sft(recipe, run_dir, tracker, is_resumed=True)

    follow(start, run_dir)
