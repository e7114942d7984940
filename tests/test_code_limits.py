"""What a box may hold and call: memory of all its processes together, and no system call of the filter's list."""

import os
import struct

import pytest
from code_boxes import boxed_code, fenced, tried

from unigrpo.rewards.code import Code
from unigrpo.rewards.sandboxing import memory_watch
from unigrpo.rewards.sandboxing.seccomp import ARCHITECTURES, DENIED, MMAP, filter_program


@pytest.fixture(scope="module")
def code() -> Code:
    return boxed_code()


LIMIT_MB = 300
HOG = """
import mmap, os, time
def f(n):
    ready, told = os.pipe()
    for _ in range(6):
        if os.fork() == 0:
            held = mmap.mmap(-1, 100 << 20, flags=mmap.MAP_PRIVATE)
            for at in range(0, len(held), 4096):
                held[at] = 1
            os.write(told, b"x")
            time.sleep(1000)
    told = [os.read(ready, 1) for _ in range(6)]
    time.sleep(1)
    return n
"""


@pytest.fixture(scope="module")
def small_code() -> Code:
    return boxed_code(timeout_s=30.0, memory_mb=LIMIT_MB)


def test_processes_that_together_hold_too_much_end_with_their_box(small_code: Code) -> None:
    """Each of the six is within its own limit; together they want 600 MiB of at most 300."""
    logged: list[tuple[str, float]] = []
    values = small_code(
        completions=[fenced(HOG), fenced("def f(n): return n")],
        tests=[["assert f(3) == 3"]] * 2,
        log_metric=lambda *metric: logged.append(metric),
    )
    assert values == [0.0, 1.0]
    assert ("timeout_fraction", 0.0) in logged, "it was ended, and did not run out of time"


def test_the_same_within_the_limit_is_right(small_code: Code) -> None:
    program = HOG.replace("100 << 20", "30 << 20")
    assert small_code(completions=[fenced(program)], tests=[["assert f(3) == 3"]]) == [1.0]


def test_memory_that_processes_share_is_counted_once(small_code: Code) -> None:
    """A hundred of three hundred MiB, seen by six processes."""
    share = (
        "import os, time\nheld = bytearray(100 << 20)\ndef f(n):\n    for _ in range(5):\n"
        "        if os.fork() == 0: time.sleep(1000)\n    time.sleep(0.5)\n    return n"
    )
    assert small_code(completions=[fenced(share)], tests=[["assert f(3) == 3"]]) == [1.0]


CALLS = {
    "memfd_create": "os.close(os.memfd_create('x'))",
    "shared memory segment": "libc.shmget(0, 4096, 0o1600)",
    "message queue": "libc.msgget(0, 0o1600)",
    "new namespaces": "libc.unshare(0x10000000)",
    "keys": "libc.syscall(217 if is_arm else 248, b'user', b'x', b'y', 1, -3)",
    "io_uring": "libc.syscall(425, 1, None)",
    "bpf": "libc.syscall(280 if is_arm else 321, 0, None, 0)",
    "ptrace": "libc.ptrace(0, 0, 0, 0)",
    "a socket with a name": "__import__('socket').socket(1).bind('\\0x')",
    "a queue of connections": "__import__('socket').socket(1).listen()",
    "more room at a socket": "__import__('socket').socketpair()[0].setsockopt(1, 7, 2**22)",
    "the x32 ABI": "libc.syscall(0x40000000 + 39)",
}


@pytest.mark.parametrize("name", CALLS)
def test_system_calls_of_the_filter_are_not_there(code: Code, name: str) -> None:
    if name == "the x32 ABI" and os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has it")
    call = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nis_arm = os.uname().machine == 'aarch64'\n"
        f"value = {CALLS[name]}\n"
        "if value is not None and value < 0 and ctypes.get_errno() == 38: raise OSError\n"
    )
    assert tried(code, call) == "blocked"


def test_an_event_loop_and_a_pair_of_sockets_are_there(code: Code) -> None:
    assert tried(code, "import asyncio\nasync def f(): await asyncio.sleep(0)\nasyncio.run(f())") == "done"
    assert tried(code, "import socket\na, b = socket.socketpair()\na.send(b'x')\nb.recv(1)") == "done"


FILES = """
import time
def f(n):
    for k in range(400):
        open(f'/tmp/{k}', 'w').close()
    time.sleep(1)
    return n
"""


def test_files_without_content_are_counted_and_a_few_are_no_harm(
    small_code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = fenced(FILES)
    assert small_code(completions=[many], tests=[["assert f(3) == 3"]]) == [1.0]
    monkeypatch.setattr(memory_watch, "INODE_BYTES", 2**20)  # so that 400 of them are 400 MiB
    assert small_code(completions=[many], tests=[["assert f(3) == 3"]]) == [0.0]


def test_memory_that_would_outlive_its_pages_cannot_be_had_and_other_maps_can(code: Code) -> None:
    shared, private = "mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED)", "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)"
    assert tried(code, f"import mmap\n{shared}") == "blocked"
    assert tried(code, f"import mmap\n{private}") == "done"
    file = "import mmap\nfile = open('/tmp/x', 'w+b')\nfile.truncate(4096)\n"
    assert tried(code, f"{file}mmap.mmap(file.fileno(), 4096)[0] = 1") == "done"
    assert tried(code, "open('/dev/zero')") == "blocked"


def test_the_filter_refuses_other_architectures_and_is_made_for_two() -> None:
    """The program is run by hand, as the kernel runs it."""

    def verdict(machine: str, architecture: int, number: int, flags: int = 0) -> int:
        program = filter_program(machine)
        assert program is not None
        lines = list(struct.iter_unpack("=HBBI", program))
        place, value = 0, 0
        while True:
            code, if_true, if_false, operand = lines[place]
            place += 1
            if code == 0x20:
                value = {0: number, 4: architecture, 40: flags}[operand]
            elif code == 0x06:
                return operand
            else:
                is_true = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
                place += if_true if is_true else if_false

    allow, refuse = 0x7FFF0000, 0x00050000 | 38
    for machine, (column, architecture) in ARCHITECTURES.items():
        denied = {row[column] for row in DENIED.values()}
        assert [verdict(machine, architecture, number) for number in range(500)] == [
            refuse if number in denied else allow for number in range(500)
        ]
        assert verdict(machine, architecture ^ 0x80000000, 39) == refuse
        shared, private, anonymous, populate = 0x01, 0x02, 0x20, 0x8000
        for flags in (shared | anonymous, 0x03 | anonymous, shared | anonymous | populate):
            assert verdict(machine, architecture, MMAP[column], flags) == refuse
        for flags in (shared, private | anonymous, private | anonymous | populate):
            assert verdict(machine, architecture, MMAP[column], flags) == allow
        assert verdict(machine, architecture, 0x40000000 + 39) == refuse
    assert filter_program("riscv64") is None
