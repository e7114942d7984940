"""``unigrpo eval``: the held-out scores of a recipe's policy, or of a run's last checkpoint."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from unigrpo.cli.arguments import Overrides, existing_training_run


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN_DIR", help="What to evaluate.")],
    overrides: Overrides = None,
) -> None:
    """Score held-out prompts at temperature 1 and greedily; a run directory means its last checkpoint."""
    from rich.console import Console
    from rich.table import Column, Table

    from unigrpo.recipe.load import load_recipe
    from unigrpo.runs.trackers.terminal import Terminal

    run_dir = existing_training_run(Path(target)) if Path(target).is_dir() else None
    source = target if run_dir is None else run_dir / "recipe.yaml"
    recipe = load_recipe(source, overrides or [], is_trained=False)
    if run_dir is not None:
        _say_edits(run_dir)
    with closing(Terminal()) as terminal:
        terminal.phase("loading torch")
        from unigrpo.evaluation.evaluate import evaluate_run

        metrics = evaluate_run(recipe, run_dir, terminal)
    table = Table("metric", Column("value", justify="right"), box=None, pad_edge=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
    for name, value in metrics.items():
        if name.endswith("/misordered_fraction") and value > 0:
            typer.echo(
                f"note: {name.split('/')[1]}: reward (each part mapped to [0, 1]) and optimized (the sum of value "
                f"times weight, which training adds) order {value:.0%} of the completions otherwise"
            )


def _say_edits(run_dir: Path) -> None:
    """Warn where the recipe in a run is not the one that it was trained with."""
    from unigrpo.recipe.load import load_recipe
    from unigrpo.runs.changes import edits_of

    stored = load_recipe(run_dir / "recipe.yaml", is_trained=False)
    if edits := edits_of(run_dir, stored.model_dump(mode="json")):
        keys = ", ".join(one.key for one in edits)
        typer.echo(f"{run_dir / 'recipe.yaml'} was edited ({keys}); the run was not trained with that", err=True)
