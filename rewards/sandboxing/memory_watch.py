"""Ends a box whose processes together hold too much memory, which no limit of one process sees."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

PERIOD_S = 0.05
"""Between two looks: how long a box may be over its limit."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
SOCKET_BYTES = 2**18
"""What may wait at one socket: net.core.wmem_default with the kernel's own record of it."""
INODE_BYTES = 2**11
"""A file in a tmpfs without content, with its name: an inode and a directory entry, rounded up."""
_OWN_TMP = os.stat("/tmp").st_dev
"""This process's own ``/tmp``, which is no box's."""


class MemoryWatch:
    """One thread that looks after all boxes of a sandbox while there are any.

    Example:
        >>> with watch.of(box.pid, box.end):
        ...     talk_to(box)
    """

    def __init__(self, limit: int) -> None:
        """Take the bytes that the processes of one box may hold together."""
        self._limit = limit
        self._boxes: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._is_running = False

    @contextlib.contextmanager
    def of(self, pid: int, end: Callable[[], None]) -> Iterator[None]:
        """Watch a process and all that descend from it; ``end`` is called, in the context, where they hold too much."""
        with self._lock:
            self._boxes[pid] = end
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="sandbox-memory", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._boxes[pid]

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                if not self._boxes:
                    self._is_running = False
                    return
                with contextlib.suppress(OSError):  # No descriptor to spare: the next look may have one.
                    self._look()
            pause.wait(PERIOD_S)

    def _look(self) -> None:
        parents, resident = processes()
        for pid, end in self._boxes.items():
            pids = family(pid, parents)
            if held(pids, resident, self._limit) + held_by_kernel(pids) > self._limit:
                end()


def processes() -> tuple[dict[int, int], dict[int, int]]:
    """Return the parent and the resident bytes of every process of the machine."""
    parents, resident = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):  # It ended meanwhile.
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                parents[int(name)], resident[int(name)] = int(fields[1]), int(fields[21]) * _PAGE
    return parents, resident


def family(pid: int, parents: Mapping[int, int]) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found


def held(pids: Sequence[int], resident: Mapping[int, int], limit: int) -> int:
    """Return the bytes that processes hold together; over a limit, pages that they share are counted once."""
    total = sum(resident.get(pid, 0) for pid in pids)
    return total if total <= limit else sum(_proportional(pid, resident.get(pid, 0)) for pid in pids)


def held_by_kernel(pids: Sequence[int]) -> int:
    """Return the bytes that the kernel may hold for processes and charges to none: at sockets, and for files' names.

    Args:
        pids: of one box; its ``/tmp`` is seen through each of them, and counted once.
    """
    num_sockets, inodes = 0, {}
    for pid in pids:
        with contextlib.suppress(OSError):  # It ended meanwhile, or does not let itself be looked at.
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    num_sockets += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
            folder = f"/proc/{pid}/root/tmp"
            if os.stat(folder).st_dev != _OWN_TMP:
                found = os.statvfs(folder)
                inodes[found.f_fsid] = found.f_files - found.f_ffree
    return num_sockets * SOCKET_BYTES + sum(inodes.values()) * INODE_BYTES


def _proportional(pid: int, resident: int) -> int:
    """Return a process's share of its pages; all of them where it does not let itself be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident
