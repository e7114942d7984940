"""``unigrpo inspect``: what a checkpoint is and what it needs."""

from __future__ import annotations

from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or asset:NAME.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="Open tokens of a row in the memory estimate.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=0, help="Pictures in a row's prompt in the memory estimate.")
    ] = None,
) -> None:
    """Show a checkpoint's family, sizes, vocabulary, tasks and memory; no weight is read or downloaded."""
    from rich.console import Console
    from rich.table import Table

    from unigrpo.inspection import inspect_model

    console = Console()
    for title, rows in inspect_model(model, revision, length=length, images=images).items():
        table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
        table.title_style = "bold cyan"
        table.add_column(style="bold", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for row in rows:
            table.add_row(row.name, row.value, row.explanation)
        console.print(table)
        console.print()
