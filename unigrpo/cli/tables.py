"""Tables of the terminal: a name, a value and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from unigrpo.sizing.memory import Row


def print_tables(console: Console, tables: Mapping[str, Sequence[Row]]) -> None:
    """Print tables, rows by title, below each other."""
    from rich.table import Column, Table

    for title, rows in tables.items():
        columns = Column(style="bold", no_wrap=True), Column(justify="right", no_wrap=True), Column(style="dim")
        table = Table(*columns, box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
        table.title_style = "bold cyan"
        for row in rows:
            table.add_row(row.name, row.value, row.explanation)
        console.print(table)
        console.print()
