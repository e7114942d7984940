"""``unigrpo resume``: go on from the last checkpoint of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from unigrpo.cli.arguments import NoLock, Overrides, RunDir, existing_run


def resume(
    run_dir: RunDir,
    overrides: Overrides = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although data, code or base changed since the run began.")
    ] = False,
    no_lock: NoLock = False,
) -> None:
    """Go on with a run from its last whole checkpoint, be it `train` or `sft`.

    Overrides hold from here on and are kept in the run with their step, such as learner.lr=1e-6; num_steps makes a
    run longer, a finished one, too. What would make its steps other than the recipe says is refused.
    """
    from unigrpo.cli.follow import Followed
    from unigrpo.recipe.load import is_supervised

    is_sft = is_supervised(existing_run(run_dir) / "recipe.yaml")
    how = {"accepts_changes": accept_changes, "has_lock": not no_lock}
    with Followed(run_dir) as terminal:
        if is_sft:
            from unigrpo.supervised.sft import resume_sft

            resume_sft(run_dir, terminal, overrides or [], **how)
        else:
            from unigrpo.train import resume as resume_training

            resume_training(run_dir, terminal, overrides or [], **how)
