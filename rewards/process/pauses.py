"""Time of a reward's call that its ``timeout_s`` does not count: waiting for a process that has limits of its own.

A reward says so with :func:`deadline_paused`; in a worker this is told to the pool, anywhere else it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_SEND: ContextVar[Callable[[Mapping[str, Any]], None] | None] = ContextVar("send", default=None)


@contextmanager
def reporting_pauses(send: Callable[[Mapping[str, Any]], None] | None) -> Iterator[None]:
    """Tell ``send`` of the pauses in this block; None tells nobody."""
    token = _SEND.set(send)
    try:
        yield
    finally:
        _SEND.reset(token)


@contextmanager
def deadline_paused(limit_s: float) -> Iterator[None]:
    """Pause the call's deadline for the block, which ends by itself within ``limit_s`` seconds. Blocks do not nest."""
    send = _SEND.get()
    if send is None:
        yield
        return
    send({"pause_s": limit_s})
    try:
        yield
    finally:
        send({"resume": True})
