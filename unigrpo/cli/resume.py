"""``unigrpo resume``: go on from the last checkpoint of a run."""

from __future__ import annotations

from unigrpo.cli.arguments import RunDir, existing_run


def resume(run_dir: RunDir) -> None:
    """Go on with a run from its last whole checkpoint."""
    from rich.console import Console

    from unigrpo.cli.live import make_observer
    from unigrpo.recipe import load_recipe

    existing_run(run_dir)
    recipe = load_recipe(run_dir / "recipe.yaml")
    console = Console()
    with make_observer(console, recipe.num_steps) as observer:
        observer.phase("loading torch")
        from unigrpo.train import resume as resume_training

        resume_training(run_dir, observer)
    console.print(f"run directory: {run_dir}", markup=False, highlight=False, soft_wrap=True)
