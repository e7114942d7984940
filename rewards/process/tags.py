"""The tag of a child process: a variable of its environment, by which all that it started is found and ended.

A process group ends with one kill, but whoever calls ``setsid`` (``start_new_session=True``, a daemon) is no longer in
it, and once its parent is gone no chain of parents leads to it either. Its environment stays what it was started with.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import signal
import time

PREFIX = "UNIGRPO_CHILD_"
"""Start of the name of every variable that a child has from us."""
_OWN = PREFIX + "TAG"
_MAX_ROUNDS = 100
_PAUSE_S = 0.01
"""Together a second, for those that start others while they are ended, or that the kernel holds on to."""


def add_tag(environment: dict[str, str]) -> str:
    """Add a new tag to the environment of a child, and return it; tags of the child's ancestors stay."""
    tag = f"{_OWN}_{secrets.token_hex(8)}"
    environment |= {tag: "1", _OWN: tag}
    return tag


def own_tag() -> str | None:
    """Return the tag of this process, None where it is no child."""
    return os.environ.get(_OWN)


def end_tagged(tag: str) -> None:
    """Kill every other process that has a tag, until there is none; where there is no /proc, none is found.

    A process that was started with an emptied environment has no tag, and one of another user cannot be read.
    """
    for _ in range(_MAX_ROUNDS):
        pids = _tagged(tag)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def _tagged(tag: str) -> list[int]:
    wanted = f"\0{tag}=".encode()
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        pid = int(path.split("/")[2])
        with contextlib.suppress(OSError), open(path, "rb") as file:  # It ended, or is not ours.
            if pid != os.getpid() and wanted in b"\0" + file.read():
                found.append(pid)
    return found
