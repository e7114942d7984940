"""``unigrpo sft``: the supervised stage before reinforcement learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unigrpo.cli.arguments import OutDir, Overrides, RecipeArgument, new_directory

if TYPE_CHECKING:
    from unigrpo.runs.trackers.base import Tracker


def sft(recipe: RecipeArgument, overrides: Overrides = None, out: OutDir = None) -> None:
    """Train a policy on demonstrations, as a supervised recipe says."""
    from unigrpo.cli.follow import follow
    from unigrpo.recipe.load import load_sft_recipe

    checked = load_sft_recipe(recipe, overrides or [])
    run_dir = new_directory(out, checked.name, checked.seed)

    def start(tracker: Tracker) -> None:
        from unigrpo.supervised.sft import run_sft

        run_sft(checked, run_dir, tracker)

    follow(start, run_dir)
