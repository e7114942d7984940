"""``unigrpo sft``: the supervised stage before reinforcement learning."""

from __future__ import annotations

from unigrpo.cli.arguments import OutDir, Overrides, RecipeArgument, new_directory


def sft(recipe: RecipeArgument, overrides: Overrides = None, out: OutDir = None) -> None:
    """Train a policy on demonstrations, as a supervised recipe says."""
    from rich.console import Console

    from unigrpo.cli.live import make_observer
    from unigrpo.recipe import load_sft_recipe

    checked = load_sft_recipe(recipe, overrides or [])
    run_dir = new_directory(out, checked.name, checked.seed)
    console = Console()
    with make_observer(console, checked.num_steps) as observer:
        observer.phase("loading torch")
        from unigrpo.sft import run_sft

        run_sft(checked, run_dir, observer)
    console.print(f"run directory: {run_dir}", markup=False, highlight=False, soft_wrap=True)
