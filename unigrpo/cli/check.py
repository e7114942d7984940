"""``unigrpo check``: whether a recipe can run, and what a step of it costs."""

from __future__ import annotations

from unigrpo.cli.arguments import Overrides, RecipeArgument
from unigrpo.cli.tables import print_tables


def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe without running anything; show its batch arithmetic and memory."""
    from rich.console import Console

    from unigrpo.recipe.checks import image_fit
    from unigrpo.recipe.doubts import doubts_of_supervision, doubts_of_training
    from unigrpo.recipe.load import find_recipe, is_supervised, load_recipe, load_sft_recipe
    from unigrpo.sizing.arithmetic import batch_arithmetic

    console = Console(highlight=False)
    if is_supervised(find_recipe(recipe)):
        supervised = load_sft_recipe(recipe, overrides or [])
        doubts = list(doubts_of_supervision(supervised))
        for name, task in supervised.tasks.items():
            fit = image_fit(supervised.policy, task) if task.kind != "reason" else None
            pictures = f", pictures become squares of {supervised.policy.image_size} pixels by {fit}" if fit else ""
            console.print(f"{name}: {task.kind}, {task.batch_size} demonstrations a step{pictures}", markup=False)
    else:
        checked = load_recipe(recipe, overrides or [])
        doubts = list(doubts_of_training(checked))
        print_tables(console, batch_arithmetic(checked))
    for doubt in doubts:
        console.print(f"warning: {doubt}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{recipe} can run", style="bold green", markup=False, soft_wrap=True)
