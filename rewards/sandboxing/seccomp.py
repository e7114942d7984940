"""The system calls that a box does not have, as a filter for the kernel.

Left out is memory that no process is charged for, because it stays when its pages are dropped or its process ends
(files in memory, System V segments, shared anonymous maps, what waits at a socket with a name), and doors of the
kernel that a program under test has no
use for. A call that is left out fails with ENOSYS, as on a kernel without it.
"""

from __future__ import annotations

import errno
import platform
import struct

DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bind": (49, 200),
    "listen": (50, 201),
    "setsockopt": (54, 208),
}
"""Numbers on x86_64 and on aarch64 (the kernel's tables ``syscall_64.tbl`` and ``asm-generic/unistd.h``)."""
MMAP = (9, 222)
"""Refused where its flags ask for shared and anonymous memory at once."""
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: the column of its numbers, and its AUDIT_ARCH."""
_X32_BIT = 0x40000000
"""Set in the numbers of the x32 ABI, which are the same calls again."""

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FLAGS_AT = 0, 4, 40
"""Offsets in ``seccomp_data``; the flags are the low half of the fourth argument."""
_SHARED, _ANONYMOUS = 0x01, 0x20
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def filter_program(machine: str | None = None) -> bytes | None:
    """Return the filter as the kernel takes it (an array of ``sock_filter``); None for a machine whose calls we lack.

    Calls of another architecture than the machine's own are refused whole.

    Args:
        machine: as :func:`platform.machine` names it; None is this one.
    """
    known = ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    column, architecture = known
    numbers = [row[column] for row in DENIED.values()]
    checks = [(_IF_AT_LEAST, _X32_BIT), *((_IF_EQUAL, number) for number in numbers)]
    # A jump counts the instructions it skips; the refusal is the last one, after the permission.
    maps = [
        (_IF_EQUAL, 0, 3, MMAP[column]),
        (_LOAD, 0, 0, _FLAGS_AT),
        (_IF_ANY_BIT, 0, 1, _SHARED),
        (_IF_ANY_BIT, 1, 0, _ANONYMOUS),
    ]
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 0, len(checks) + len(maps) + 2, architecture),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((code, len(checks) + len(maps) - place, 0, value) for place, (code, value) in enumerate(checks)),
        *maps,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
