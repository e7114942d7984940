"""``unigrpo inspect``: what a checkpoint is and what it needs."""

from __future__ import annotations

from typing import Annotated

import typer

from unigrpo.cli.tables import print_tables


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or asset:NAME.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")] = None,
    use: Annotated[
        str | None, typer.Option("--use", help="The family, where config.json does not say it: your file.py:Class.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="Open tokens of a row in the memory estimate.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=0, help="Pictures in a row's prompt in the memory estimate.")
    ] = None,
) -> None:
    """Show a checkpoint's family, sizes, vocabulary, tasks and memory; no weight is read or downloaded."""
    from rich.console import Console

    from unigrpo.sizing.inspection import inspect_model

    print_tables(Console(), inspect_model(model, revision, length=length, images=images, use=use))
