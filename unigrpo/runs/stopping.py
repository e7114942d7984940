"""Signals that ask a run to stop: it ends its step and saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ScoringStopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came while rewards were scored."""


@contextmanager
def stop_requests(is_scoring: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM asked to stop.

    A second SIGINT stops at once, and so does any request while ``is_scoring``: a reward may wait for long, and what it
    waits for can be asked again.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if is_scoring():
            raise ScoringStopped
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
