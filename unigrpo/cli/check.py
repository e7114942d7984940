"""``unigrpo check``: whether a recipe can run, and what a step of it costs."""

from __future__ import annotations

from unigrpo.cli.arguments import Overrides, RecipeArgument


def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe without running anything; show its batch arithmetic and memory."""
    from rich.console import Console
    from rich.table import Table

    from unigrpo.arithmetic import batch_arithmetic
    from unigrpo.recipe import find_recipe, is_supervised, load_recipe, load_sft_recipe

    if is_supervised(find_recipe(recipe)):
        load_sft_recipe(recipe, overrides or [])
        Console().print(f"{recipe} can run", style="bold green", markup=False, highlight=False, soft_wrap=True)
        return
    checked = load_recipe(recipe, overrides or [])
    console = Console()
    for title, rows in batch_arithmetic(checked).items():
        table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
        table.title_style = "bold cyan"
        table.add_column(style="bold", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for row in rows:
            table.add_row(row.name, row.value, row.explanation)
        console.print(table)
        console.print()
    console.print(f"{recipe} can run", style="bold green", markup=False, highlight=False, soft_wrap=True)
