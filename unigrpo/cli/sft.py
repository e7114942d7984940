"""``unigrpo sft``: the supervised stage before reinforcement learning."""

from __future__ import annotations

from unigrpo.cli.arguments import NoLock, OutDir, Overrides, RecipeArgument, new_directory


def sft(recipe: RecipeArgument, overrides: Overrides = None, out: OutDir = None, no_lock: NoLock = False) -> None:
    """Train a policy on demonstrations, as a supervised recipe says."""
    from unigrpo.cli.follow import Followed
    from unigrpo.recipe.load import load_sft_recipe

    checked = load_sft_recipe(recipe, overrides or [])
    run_dir = new_directory(out, checked.name, checked.seed)
    with Followed(run_dir, is_made_here=out is None) as terminal:
        from unigrpo.supervised.sft import run_sft

        run_sft(checked, run_dir, terminal, has_lock=not no_lock)
