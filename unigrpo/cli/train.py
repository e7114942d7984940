"""``unigrpo train``: a whole training run."""

from __future__ import annotations

from unigrpo.cli.arguments import NoLock, OutDir, Overrides, RecipeArgument, new_directory


def train(recipe: RecipeArgument, overrides: Overrides = None, out: OutDir = None, no_lock: NoLock = False) -> None:
    """Train a policy as a recipe says, evaluated before and after.

    A recipe can name code of yours (`use:`), which this runs.
    """
    from unigrpo.cli.follow import Followed
    from unigrpo.recipe.load import load_recipe

    checked = load_recipe(recipe, overrides or [])
    run_dir = new_directory(out, checked.name, checked.seed)
    with Followed(run_dir, is_made_here=out is None) as terminal:
        from unigrpo.train import train as run_training

        run_training(checked, run_dir, terminal, has_lock=not no_lock)
