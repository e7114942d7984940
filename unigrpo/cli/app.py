"""The commands by name, and how their errors are shown.

Exit codes: 0 done; 1 a bug (with its traceback), or a reward that failed on all items; 2 something that the user can
mend (one short message), a full, read-only or failing disk included; 128 + n stopped by signal n (130 Ctrl-C, 143
SIGTERM, 129 SIGHUP), 141 where what reads the output has ended.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import typer

from unigrpo.cli.check import check
from unigrpo.cli.evaluate import evaluate
from unigrpo.cli.export import export
from unigrpo.cli.inspect import inspect
from unigrpo.cli.make_tiny import make_tiny
from unigrpo.cli.report import report
from unigrpo.cli.resume import resume
from unigrpo.cli.sample import sample
from unigrpo.cli.score import score
from unigrpo.cli.sft import sft
from unigrpo.cli.train import train
from unigrpo.errors import UserError
from unigrpo.files import FULL, STORAGE, storage_error
from unigrpo.runs.stopping import Stopped, stopped_by_signals
from unigrpo.sanitized import with_short_words

DEBUG = "--debug"

app = typer.Typer(
    name="unigrpo",
    help="Post-train masked-diffusion language models with reinforcement learning: text, pictures, one loss.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that says in one line that a signal stopped it, and has the signal's exit code."""

    @functools.wraps(command)
    def stoppable(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except Stopped as stop:
            if not stop.is_said:
                with suppress(OSError):
                    typer.echo(f"{stop}; nothing is half-written: give the same command again", err=True)
            raise typer.Exit(stop.exit_code) from None

    return stoppable


for command in (train, sft, resume, check, sample, evaluate, score, report, export, inspect, make_tiny):
    app.command("eval" if command is evaluate else command.__name__.replace("_", "-"))(_stoppable(command))


def _version(is_asked: bool) -> None:
    if is_asked:
        from unigrpo import __version__

        typer.echo(f"unigrpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_version, is_eager=True),
    debug: bool = typer.Option(False, DEBUG, help="Show the traceback of every error. Works after a command, too."),
) -> None:
    """Hold the options that belong to every command."""


def run(arguments: list[str]) -> int:
    """Run a command line, given without the program's name, and return its exit code."""
    is_debug = DEBUG in arguments
    try:
        with ExitStack() as stack:
            stack.enter_context(stopped_by_signals())
            stack.push(_note_bug)
            code = app([argument for argument in arguments if argument != DEBUG], standalone_mode=True)
    except SystemExit as end:
        code = end.code
        if isinstance(end.__context__, BrokenPipeError) and code == 1:
            code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130
    except (UserError, OSError) as error:
        mendable = _mendable(error)
        if is_debug or mendable is None:
            raise
        _show(mendable)
        return 2
    finally:
        _flush()
    return code if isinstance(code, int) else 0


def _mendable(error: UserError | OSError) -> UserError | None:
    """Return an error as one that the user can mend: of a disk that takes nothing, too, wherever it was written to."""
    if isinstance(error, UserError):
        return error
    if error.errno not in STORAGE or (error.filename is None and error.errno not in FULL):
        return None
    place = os.fsdecode(error.filename) if error.filename is not None else "standard output or a file that was open"
    return storage_error(Path(place), error)


def _flush() -> None:
    """Write what is left for standard output, if anybody takes it: Python would end with a message of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _note_bug(kind: object, error: BaseException | None, trace: object) -> None:
    """Add to the traceback of an error that the user cannot mend where to report it."""
    if isinstance(error, Exception) and not isinstance(error, UserError):
        from unigrpo import __version__

        error.add_note(
            f"This is a bug, of unigrpo {__version__} or of code that the recipe names. If it is unigrpo's, please "
            "report it in the repository's issue tracker with the lines above and the recipe."
        )


def _show(error: UserError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), (with_short_words(str(error)), "red")))
    if getattr(error, "__notes__", None):
        console.print(Text(f"(run again with {DEBUG} for the traceback)", "dim"))
