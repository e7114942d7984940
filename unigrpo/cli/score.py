"""``unigrpo score``: rewards of saved completions, offline, by the runtime that trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unigrpo.cli.arguments import MaxPixels, Overrides
from unigrpo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from unigrpo.scoring.score import Scores

NUM_EXTREMES = 3


def score(
    rewards: Annotated[
        str,
        typer.Argument(metavar="REWARDS", help="A recipe, a YAML file with `rewards`, MODULE:NAME or FILE.py:NAME."),
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL of prompts and completions, or a picture folder.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder: scores.jsonl, summary.json, scores.html.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page alone, here.")] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="OURS=THEIRS", help="Name of a column; may be repeated.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Of every line, a name or a kind; told from the completion if not given."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Of a folder: JSONL, or .txt, one prompt a line.")
    ] = None,
    max_pixels: MaxPixels = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Items scored together.")] = 32,
    bench: Annotated[bool, typer.Option("--bench", help="Only measure each reward's throughput, alone.")] = False,
) -> None:
    """Score saved completions: a table, the worst and best items, and files with --out.

    The exit code is 1 where every item of a reward failed.
    """
    from rich.console import Console

    from unigrpo.pictures import MAX_PIXELS
    from unigrpo.recipe.load import load_rewards
    from unigrpo.scoring.items import read_items

    _check_places(out, html, bench)
    settings = load_rewards(rewards, overrides or [])
    items = read_items(
        file,
        columns=dict(_column(pair) for pair in column or []),
        task=task,
        prompts=prompts,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    console = Console()
    from unigrpo.scoring.page import write_score_page
    from unigrpo.scoring.score import bench_rewards, score_items, write_scores

    if bench:
        with _progress("measuring", len(settings)) as on_progress:
            rates = bench_rewards(settings, items, on_progress=on_progress)
        _print_table(console, ("reward", "items/s"), [(name, f"{rate:,.4g}") for name, rate in rates.items()])
        return
    with _progress("scoring", len(items)) as on_progress:
        scores = score_items(settings, items, batch_size=batch_size, on_progress=on_progress)
    _show(console, scores)
    if out is not None:
        write_scores(out, scores)
        typer.echo(f"scores: {out / 'scores.jsonl'}")
    for page in filter(None, (html, out and out / "scores.html")):
        write_score_page(page, scores, f"{file.name} by {rewards}")
        typer.echo(f"page: {page}")
    if any(reward.has_failed for reward in scores.rewards):
        raise typer.Exit(1)


def _check_places(out: Path | None, html: Path | None, is_bench: bool) -> None:
    """Refuse places that hold something before an hour of scoring, not after."""
    if is_bench and (out or html):
        raise UserError("--bench measures and writes nothing; leave out --out and --html")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there and not an empty folder; give a new one")
    if html is not None and html.is_dir():
        raise UserError(f"--html {html} is a folder; give a file, such as {html / 'scores.html'}")


def _column(pair: str) -> tuple[str, str]:
    ours, _, theirs = pair.partition("=")
    if not (ours and theirs):
        raise UserError(f"--column {pair!r}: wanted OURS=THEIRS, such as prompt=question")
    return ours, theirs


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; gives what to call with the number that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    is_hidden = not console.is_terminal or bool(os.environ.get("CI"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        bar = progress.add_task(text, total=total)
        yield lambda num_done: progress.update(bar, completed=num_done)


def _show(console: Console, scores: Scores) -> None:
    from rich.text import Text

    from unigrpo.scoring.page import HEADS, NUM_VALUE_HEADS, snippet, table_row

    rows = [table_row(reward) for reward in scores.rewards]
    for first, last in ((1, NUM_VALUE_HEADS), (NUM_VALUE_HEADS, len(HEADS))):  # two tables fit 80 columns, one does not
        _print_table(console, (HEADS[0], *HEADS[first:last]), [(row[0], *row[first:last]) for row in rows])
    for reward in scores.rewards:
        worst, best = scores.extremes(reward.name, NUM_EXTREMES)
        for kind, chosen in (("worst", worst), ("best" if worst else "always", best)):
            for scored in chosen:
                head = f"{reward.name} {kind} {scored.values[reward.name]:.4g}  {scored.item.source}  "
                console.print(Text.assemble(head, (snippet(scored.item), "dim")), no_wrap=True, overflow="ellipsis")
        for scored in scores.failed(reward.name, NUM_EXTREMES):
            reason = " ".join(scored.reasons[reward.name].split())
            text = Text(f"{reward.name} {scored.status[reward.name]}  {scored.item.source}  {reason}", "yellow")
            console.print(text, soft_wrap=True)
    if scores.order_note:
        console.print(Text(f"note: {scores.order_note}", "yellow"), soft_wrap=True)
    refused = [scored for scored in scores.items if scored.refusal]
    if refused:
        console.print(Text(f"{len(refused)} pictures could not be read; the first: {refused[0].refusal}", "yellow"))


def _print_table(console: Console, heads: tuple[str, ...], rows: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
