"""``unigrpo export``: what a run learnt, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unigrpo.cli.arguments import RunDir, existing_training_run
from unigrpo.errors import UserError
from unigrpo.files import usable


def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the export.")],
    merged: Annotated[bool, typer.Option("--merged", help="Whole weights with the adapter merged in.")] = False,
) -> None:
    """Write the last checkpoint as a PEFT adapter with a model card, or as merged weights."""
    from unigrpo.export import export_run

    existing_training_run(run_dir)
    with usable(out):
        is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken:
        raise UserError(f"{out} exists; give a new directory, so that nothing of yours is overwritten")
    export_run(run_dir, out, is_merged=merged)
    typer.echo(f"export: {out}")
