"""``unigrpo train``: a whole training run."""

from __future__ import annotations

from unigrpo.cli.arguments import OutDir, Overrides, RecipeArgument, new_directory


def train(recipe: RecipeArgument, overrides: Overrides = None, out: OutDir = None) -> None:
    """Train a policy as a recipe says, evaluated before and after.

    A recipe can name code of yours (`use:`), which this runs.
    """
    from rich.console import Console

    from unigrpo.cli.live import make_observer
    from unigrpo.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    run_dir = new_directory(out, checked.name, checked.seed)
    console = Console()
    with make_observer(console, checked.num_steps) as observer:
        observer.phase("loading torch")
        from unigrpo.train import train as run_training

        run_training(checked, run_dir, observer)
    console.print(f"run directory: {run_dir}", markup=False, highlight=False, soft_wrap=True)
