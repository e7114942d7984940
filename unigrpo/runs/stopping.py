"""Signals that ask a program to stop: a run ends its step and saves first, everything else ends where it stands."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's or an operator's end, a terminal that is closed."""


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        """Keep which signal it was."""
        super().__init__()
        self.signal = signal.Signals(number)
        self.is_said = False
        """Whether the user was told how to go on."""

    @property
    def exit_code(self) -> int:
        """Return 128 and the signal's number, as shells have it."""
        return 128 + self.signal

    def __str__(self) -> str:
        """Return what happened, for one line."""
        return "interrupted" if self.signal == signal.SIGINT else f"stopped by {self.signal.name}"


class ScoringStopped(Stopped):
    """The signal came where a step need not be waited for: while rewards were scored or held-out prompts evaluated."""


class StopRequest:
    """Whether a signal asked to stop, and which."""

    def __init__(self) -> None:
        """Begin without one."""
        self.number: int | None = None

    def __call__(self) -> bool:
        """Return whether one came."""
        return self.number is not None

    def error(self) -> Stopped:
        """Return what ends the run once it has saved."""
        return Stopped(self.number or signal.SIGINT)


class _Stop:
    """A handler: the first signal raises, so that everything is closed on the way out; a second ends the process."""

    def __init__(self) -> None:
        self.is_ending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_ending:
            os._exit(128 + number)  # Closing hangs, or is not to be waited for; workers end with their connection.
        self.is_ending = True
        raise Stopped(number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` in the block at the first signal, and end the process at a second, with its exit code.

    A hang-up that is ignored already (nohup) stays so. Outside of the main thread nothing changes.
    """
    with _handled(_Stop()):
        yield


@contextmanager
def stop_requests(is_interruptible: Callable[[], bool]) -> Iterator[StopRequest]:
    """Yield what says whether a signal asked to stop.

    A second one stops at once, and so does any request while ``is_interruptible``: a reward or an evaluation may take
    long, and what it gives can be asked again. Once one came, a signal after the block ends the process at once.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if is_interruptible():
            raise ScoringStopped(number)
        if request():
            raise Stopped(number)
        request.number = number

    with _handled(ask) as previous:
        try:
            yield request
        except Stopped:
            for handler in previous:
                if isinstance(handler, _Stop):
                    handler.is_ending = True
            raise


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[list[object]]:
    """Handle the signals in the block; gives the handlers that it replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    numbers = [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield list(previous.values())
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
