"""What a run looks like on a terminal: a live table; elsewhere a plain line a step. Rich is imported when it shows."""

from __future__ import annotations

import errno
import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.runs.alarms import MEANING, about, alarms_of
from unigrpo.runs.trackers.base import Tracker

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from unigrpo.settings.recipe import Recipe
    from unigrpo.settings.sft import SftRecipe

logger = logging.getLogger(__name__)
LONG_WAIT_S = 30.0
"""A phase that takes longer says again what it waits for."""
NUM_ROWS = 12
"""Steps that the live table shows."""


class Terminal(Tracker):
    """The live table on a terminal, plain lines where output goes to a file or `CI` is set."""

    def __init__(self, is_live: bool | None = None) -> None:
        """Take how to show.

        Args:
            is_live: true is the table, false is lines; null is what fits where the output goes.
        """
        self._is_live = is_live
        self._remaining = _RemainingTime()
        self._shown: _Lines | _Table | None = None
        self._set: dict[str, str] = {}
        """The alarms of the last step, and what they were about."""

    @property
    def _view(self) -> _Lines | _Table:
        if self._shown is None:
            from rich.console import Console

            class Output(Console):
                """Leaves it to this file what becomes of a pipe that is closed: Rich would end the program."""

                def on_broken_pipe(self) -> None:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

            console = Output(force_terminal=True if self._is_live else None)
            is_live = console.is_terminal and not os.environ.get("CI") if self._is_live is None else self._is_live
            self._shown = (_Table if is_live else _Lines)(console, self._remaining)
        return self._shown

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Learn how many steps there are, for the time that is left."""
        self._remaining.num_steps = recipe.num_steps

    def phase(self, text: str) -> None:
        """Show the phase."""
        with self._while_it_lasts():
            self._view.phase(text)

    def progress(self, done: int, total: int, text: str) -> None:
        """Show the pieces."""
        with self._while_it_lasts():
            self._view.progress(done, total, text)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show the step, and each alarm that it newly sets with what it means."""
        self._remaining.step(metrics)
        alarms = {name: about(metrics, name) for name in alarms_of(metrics)}
        with self._while_it_lasts():
            self._view.step(columns_of(metrics))
            for name, of in alarms.items():
                if name not in self._set and of:
                    self._view.note(f"alarm at step {metrics['step']}: {name.replace('_', ' ')}: {of}. {MEANING[name]}")
        self._set = alarms

    def done(self, summary: Mapping[str, Any]) -> None:
        """Show that the run has ended, and what it must be read with."""
        with self._while_it_lasts():
            for note in summary.get("notes") or ():
                self._view.note(f"note: {note}")
            self._view.done(f"{summary.get('status', 'done')} in {duration(float(summary.get('wall_s', 0)))}")

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._shown is not None:
            with self._while_it_lasts():
                self._shown.close()

    @contextmanager
    def _while_it_lasts(self) -> Iterator[None]:
        """Go on without a terminal that is gone (a closed pipe, a hang-up, a full disk), with one warning."""
        try:
            yield
        except OSError as error:
            if self._shown is not None:
                self._shown.silence()
            said = (error.strerror or str(error)).lower()
            logger.warning("the output is gone (%s); the run goes on without it", said)


class _Lines:
    """One line a phase and one line a step, for logs; another line each time a phase takes `LONG_WAIT_S` more."""

    def __init__(self, console: Console, remaining: _RemainingTime) -> None:
        self._console, self._remaining = console, remaining
        self._timer: threading.Timer | None = None
        self._phase, self._since = "", 0.0

    def phase(self, text: str) -> None:
        """Write the phase, and again if it takes long."""
        self._line(text)
        self._phase, self._since = text, time.monotonic()
        self._start_timer()

    def progress(self, done: int, total: int, text: str) -> None:
        """Write every tenth of the pieces."""
        if self._timer is not None:
            self._start_timer()
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            self._line(f"{text}: {done}/{total}")

    def step(self, columns: Mapping[str, str]) -> None:
        self.close()
        left = {"left": self._remaining.text} if self._remaining.text else {}
        self._line("  ".join(f"{name} {value}" for name, value in {**columns, **left}.items()))

    def note(self, text: str) -> None:
        """Write a line between the steps."""
        self._line(text)

    def done(self, text: str) -> None:
        self.close()
        self._line(text)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        self.close()
        self._timer = threading.Timer(LONG_WAIT_S, self._say_still)
        self._timer.daemon = True
        self._timer.start()

    def _say_still(self) -> None:
        with suppress(OSError):  # The next line that the run itself writes says that nobody reads.
            self._line(f"still {self._phase}, {duration(time.monotonic() - self._since)}")
            self._start_timer()

    def silence(self) -> None:
        """Write nothing any more."""
        self._console.quiet = True
        self.close()

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Table:
    """A table of the last steps, with the phase and the time that is left below it."""

    def __init__(self, console: Console, remaining: _RemainingTime) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._remaining = remaining
        self._rows: list[Mapping[str, str]] = []
        self._phase = self._pieces = ""
        self._since = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=False)
        self._live.start()

    def phase(self, text: str) -> None:
        """Show the phase and how long it has taken."""
        self._phase, self._pieces, self._since = text, "", time.monotonic()

    def progress(self, done: int, total: int, text: str) -> None:
        """Show the pieces beside the phase."""
        self._pieces = f"{done}/{total} {text}"

    def step(self, columns: Mapping[str, str]) -> None:
        self._rows = [*self._rows, columns][-NUM_ROWS:]

    def note(self, text: str) -> None:
        """Write a line above the table."""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def done(self, text: str) -> None:
        self._phase = ""
        if text and not text.startswith("finished in"):
            self.note(text)

    def close(self) -> None:
        self._phase = ""
        self._live.stop()

    def silence(self) -> None:
        """Draw nothing any more."""
        self._live.console.quiet = True
        with suppress(OSError):
            self.close()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Column, Table
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._rows:
            names = list(dict.fromkeys(name for row in self._rows for name in row))
            columns = [Column(name, justify="right", no_wrap=True) for name in names]
            table = Table(*columns, box=None, pad_edge=False, header_style="bold cyan")
            for row in self._rows:
                table.add_row(*(row.get(name, "") for name in names))
            parts.append(table)
        if self._phase:
            waited = time.monotonic() - self._since
            clock = f" {duration(waited)}" if waited >= 1 else ""
            left = f"   {self._remaining.text} left" if self._remaining.text else ""
            waiting = "waiting: " if waited > LONG_WAIT_S else ""
            self._spinner.update(text=Text(f"{waiting}{self._phase} {self._pieces}".rstrip() + clock + left, "dim"))
            parts.append(self._spinner)
        return Group(*parts)


class _RemainingTime:
    """How long the rest of a run takes, from the median of its last 20 steps."""

    def __init__(self) -> None:
        self.num_steps: int | None = None
        self._seconds: deque[float] = deque(maxlen=20)
        self._step = 0

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Take in a step's time."""
        self._step = int(metrics["step"])
        if isinstance(seconds := metrics.get("timing_s/step"), int | float):
            self._seconds.append(float(seconds))

    @property
    def text(self) -> str:
        """Return the time that is left, or nothing where it is not known."""
        if self.num_steps is None or not self._seconds or self._step >= self.num_steps:
            return ""
        return duration(statistics.median_high(self._seconds) * (self.num_steps - self._step))


def columns_of(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what is shown of a step, by column: rewards by task, reward parts, KL, clipping, time."""
    shown = {"step": str(metrics["step"])}

    def add(column: str, name: str, digits: int) -> None:
        value = metrics.get(name)
        if isinstance(value, int | float):
            shown[name if column in shown else column] = f"{value:.{digits}f}"

    add("reward", "reward", 3)
    for start, end, digits in (("tasks/", "/reward", 3), ("rewards/", "/mean", 2)):
        for name in metrics:
            if name.startswith(start) and name.endswith(end):
                add(name.split("/")[1], name, digits)
    for name in metrics:
        if name.startswith("tasks/") and name.endswith("/optimized"):
            add(f"optimized {name.split('/')[1]}", name, 3)
    add("loss", "loss", 4)
    add("kl", "kl", 4)
    add("clip", "clip_ratio/region_mean", 3)
    add("s", "timing_s/step", 1)
    if skipped := metrics.get("num_skipped_updates"):
        shown["skipped"] = (
            f"{skipped} of {metrics.get('num_updates', skipped)} ({metrics['skipped_updates/cause']} not finite)"
        )
    if alarms := alarms_of(metrics):
        shown["alarm"] = ", ".join(f"{name} ({of})" if (of := about(metrics, name)) else name for name in alarms)
    return shown


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 4.2s, 3m05s, 2h07m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
