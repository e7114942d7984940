"""``unigrpo train``: a whole training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unigrpo.cli.arguments import OutDir, Overrides, RecipeArgument, new_directory

if TYPE_CHECKING:
    from unigrpo.runs.trackers.base import Tracker


def train(recipe: RecipeArgument, overrides: Overrides = None, out: OutDir = None) -> None:
    """Train a policy as a recipe says, evaluated before and after.

    A recipe can name code of yours (`use:`), which this runs.
    """
    from unigrpo.cli.follow import follow
    from unigrpo.recipe.load import load_recipe

    checked = load_recipe(recipe, overrides or [])
    run_dir = new_directory(out, checked.name, checked.seed)

    def start(tracker: Tracker) -> None:
        from unigrpo.train import train as run_training

        run_training(checked, run_dir, tracker)

    follow(start, run_dir)
