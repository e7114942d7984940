"""``unigrpo report``: one self-contained HTML file about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unigrpo.cli.arguments import existing_run


def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="The directories of one run or more.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="report.html of the first run if not given.")
    ] = None,
) -> None:
    """Write a report: before and after, curves, pictures, completions."""
    for run_dir in run_dirs:
        existing_run(run_dir)
    from unigrpo.report.write import write_report

    path = write_report(run_dirs, out or run_dirs[0] / "report.html")
    typer.echo(f"report: {path}")
