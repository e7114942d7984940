"""``unigrpo check``: whether a recipe can run, and what a step of it costs."""

from __future__ import annotations

from unigrpo.cli.arguments import Overrides, RecipeArgument
from unigrpo.cli.tables import print_tables


def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe without running anything; show its batch arithmetic and memory."""
    from rich.console import Console

    from unigrpo.recipe.doubts import doubts_of_supervision, doubts_of_training
    from unigrpo.recipe.feasible import machine_notes
    from unigrpo.recipe.load import find_recipe, is_supervised, load_recipe, load_sft_recipe
    from unigrpo.recipe.reward_calls import unread_columns
    from unigrpo.sizing.arithmetic import batch_arithmetic, supervised_arithmetic

    console = Console(highlight=False)
    unknown = ["the values of the weights", "the tokenizer and how many tokens prompts have"]
    if is_supervised(find_recipe(recipe)):
        supervised = load_sft_recipe(recipe, overrides or [])
        doubts = list(doubts_of_supervision(supervised))
        print_tables(console, supervised_arithmetic(supervised))
        notes = list(machine_notes(supervised.policy))
    else:
        loaded = load_recipe(recipe, overrides or [])
        doubts = list(doubts_of_training(loaded))
        print_tables(console, batch_arithmetic(loaded))
        notes = list(machine_notes(loaded.policy))
        unknown += unread_columns(loaded)
        unknown += ["whether the base has the layers that lora.targets names"] if loaded.lora.targets else []
    for doubt in doubts:
        console.print(f"warning: {doubt}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"not checked before the run: {'; '.join(unknown)}", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"not on this machine: {note}", style="yellow", markup=False, soft_wrap=True)
    elsewhere = ", on a machine that has what is named above" if notes else ""
    console.print(f"{recipe} can run{elsewhere}", style="bold green", markup=False, soft_wrap=True)
