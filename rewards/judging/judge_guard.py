"""Run a server for as long as whoever started this process lives; runs as a file, with nothing but Python itself.

``python judge_guard.py COMMAND...`` starts the command in a process group of its own and waits. When standard input
ends, which the kernel sees to even where the parent is killed, the group gets SIGTERM, and after a while SIGKILL. When
the server ends, this process ends with its code, and what the server left behind is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

GRACE_S = 10.0
"""From SIGTERM to SIGKILL."""
_POLL_S = 0.1
_STANDARD_INPUT = 0


def guard(command: Sequence[str]) -> int:
    """Run a command until standard input ends; return its exit code."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while not _has_ended(server.pid) and not _is_input_at_end():
            continue
    finally:
        _stop(server)
    return server.returncode


def _is_input_at_end() -> bool:
    ready, _, _ = select.select([_STANDARD_INPUT], [], [], _POLL_S)
    return bool(ready) and not os.read(_STANDARD_INPUT, 1024)


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended, without reaping it: its group's number stays ours."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _stop(server: subprocess.Popen[bytes]) -> None:
    _signal_group(server.pid, signal.SIGTERM)
    end_s = time.monotonic() + GRACE_S
    while not _has_ended(server.pid) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    _signal_group(server.pid, signal.SIGKILL)
    server.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
