"""Arguments that several commands share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from unigrpo.errors import UserError
from unigrpo.files import usable

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a packaged recipe's name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Overrides, such as learner.lr=3e-6.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run.")]
OutDir = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="New directory; runs/NAME-SEED-N if not given.")
]
NoLock = Annotated[
    bool, typer.Option("--no-lock", help="Take no lock, on a file system without; nothing else may work in the folder.")
]

MaxPixels = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Pixels that a picture may have; 64 million if not given.")
]


def new_directory(out: Path | None, name: str, seed: int) -> Path:
    """Return the directory of a new run: the one that was named, or the next that is free, which is made.

    Of two commands that start at once, each makes its own.

    Raises:
        UserError: if it already holds something (runs never share a directory), or cannot be made.
    """
    if out is None:
        return _next_directory(f"{name}-{seed}")
    from unigrpo.runs.lock import refuse_used

    refuse_used(out)
    return out


def _next_directory(name: str) -> Path:
    with usable(Path("runs")):
        Path("runs").mkdir(exist_ok=True)
        for number in itertools.count(1):
            place = Path("runs") / f"{name}-{number}"
            try:
                place.mkdir()
            except FileExistsError:
                continue
            return place
    raise AssertionError("the numbers do not end")


def existing_training_run(run_dir: Path) -> Path:
    """Return the directory of a run of reinforcement learning.

    Raises:
        UserError: if there is no run in it, or one of a supervised stage.
    """
    from unigrpo.recipe.load import is_supervised

    if is_supervised(existing_run(run_dir) / "recipe.yaml"):
        raise UserError(
            f"{run_dir} is a run of `unigrpo sft`, which has no rewards to score; {run_dir / 'policy'} is its whole "
            "checkpoint, for `unigrpo sample` and as policy.path of a training recipe"
        )
    return run_dir


def existing_run(run_dir: Path) -> Path:
    """Return the directory of a run.

    Raises:
        UserError: if there is no run in it.
    """
    with usable(run_dir):
        is_run = (run_dir / "recipe.yaml").is_file()
    if not is_run:
        raise UserError(
            f"{run_dir} holds no run: there is no recipe.yaml in it; wanted what `unigrpo train --out` made"
        )
    return run_dir
