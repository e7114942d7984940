"""``unigrpo resume``: go on from the last checkpoint of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from unigrpo.cli.arguments import RunDir, existing_run


def resume(
    run_dir: RunDir,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although data, code or base changed since the run began.")
    ] = False,
) -> None:
    """Go on with a run from its last whole checkpoint, be it `train` or `sft`."""
    from unigrpo.cli.follow import Followed
    from unigrpo.recipe.load import is_supervised, load_sft_recipe

    path = existing_run(run_dir) / "recipe.yaml"
    supervised = load_sft_recipe(path) if is_supervised(path) else None
    with Followed(run_dir) as terminal:
        if supervised is not None:
            from unigrpo.supervised.sft import run_sft

            run_sft(supervised, run_dir, terminal, is_resumed=True, accepts_changes=accept_changes)
        else:
            from unigrpo.train import resume as resume_training

            resume_training(run_dir, terminal, accepts_changes=accept_changes)
