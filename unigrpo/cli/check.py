"""``unigrpo check``: whether a recipe can run, and what a step of it costs."""

from __future__ import annotations

from unigrpo.cli.arguments import Overrides, RecipeArgument
from unigrpo.cli.tables import print_tables


def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe without running anything; show its batch arithmetic and memory."""
    from rich.console import Console

    from unigrpo.recipe.checks import image_fit
    from unigrpo.recipe.load import find_recipe, is_supervised, load_recipe, load_sft_recipe
    from unigrpo.sizing.arithmetic import batch_arithmetic

    console = Console(highlight=False)
    if is_supervised(find_recipe(recipe)):
        stage = load_sft_recipe(recipe, overrides or [])
        for name, task in stage.tasks.items():
            fit = image_fit(stage.policy, task) if task.kind != "reason" else None
            pictures = f", pictures become squares of {stage.policy.image_size} pixels by {fit}" if fit else ""
            console.print(f"{name}: {task.kind}, {task.batch_size} demonstrations a step{pictures}", markup=False)
    else:
        print_tables(console, batch_arithmetic(load_recipe(recipe, overrides or [])))
    console.print(f"{recipe} can run", style="bold green", markup=False, soft_wrap=True)
