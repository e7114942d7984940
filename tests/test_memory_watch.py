"""What processes hold together, and when whoever watches them ends them."""

import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from unigrpo.rewards.sandboxing.memory_watch import SOCKET_BYTES, MemoryWatch, family, held, held_by_kernel, processes

MIB = 2**20
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="there is no /proc")
HOLDS = """
import os, sys
held = bytearray(60 << 20)
for _ in range(2):
    if os.fork() == 0: break
sys.stdout.write("x"); sys.stdout.flush()
sys.stdin.read()
"""


@contextmanager
def three_that_share() -> Iterator[int]:
    """A process and two forks of it, which share 60 MiB that nobody writes to."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=pipe, stdout=pipe) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        assert parent.stdout.read(3) == b"xxx"
        yield parent.pid
        parent.stdin.close()


def test_a_family_is_a_process_and_all_that_descend_from_it() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 10, 13: 12, 20: 1}
    assert sorted(family(10, parents)) == [10, 11, 12, 13]
    assert family(20, parents) == [20]


def test_shared_pages_count_once_where_the_sum_is_over_the_limit() -> None:
    with three_that_share() as pid:
        parents, resident = processes()
        pids = family(pid, parents)
        assert len(pids) == 3
        loose = held(pids, resident, 1000 * MIB)
        assert loose == sum(resident[one] for one in pids) > 180 * MIB, "cheap as long as that is enough"
        assert 60 * MIB < held(pids, resident, 100 * MIB) < 120 * MIB


def test_sockets_are_counted_as_what_may_wait_at_them() -> None:
    before = held_by_kernel([os.getpid()])
    pairs = [socket.socketpair() for _ in range(5)]
    assert held_by_kernel([os.getpid()]) - before == 10 * SOCKET_BYTES
    for one in (end for pair in pairs for end in pair):
        one.close()
    assert held_by_kernel([os.getpid(), 2**22 + 1]) == before, "who has ended holds nothing"


def test_resident_memory_is_what_was_written() -> None:
    before = processes()[1][os.getpid()]
    held_here = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE)
    assert processes()[1][os.getpid()] - before < 8 * MIB
    for at in range(0, len(held_here), mmap.PAGESIZE):
        held_here[at] = 1
    assert processes()[1][os.getpid()] - before > 56 * MIB
    held_here.close()


def test_who_holds_too_much_is_told_while_watched_and_the_thread_ends_with_the_last() -> None:
    told, calm = threading.Event(), threading.Event()
    with three_that_share() as pid:
        with MemoryWatch(20 * MIB).of(pid, told.set), MemoryWatch(500 * MIB).of(pid, calm.set):
            assert told.wait(30)
            assert not calm.is_set()
        told.clear()
        assert not told.wait(0.3), "no longer watched"
    threads = [thread for thread in threading.enumerate() if thread.name == "sandbox-memory"]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
