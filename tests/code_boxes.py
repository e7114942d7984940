"""A code reward whose boxes can be told from those of others, and what programs in them may try."""

import os

import psutil
import pytest

from unigrpo.rewards.code import Code
from unigrpo.rewards.sandboxing.sandbox import SandboxUnavailableError

MEMORY_MB = 1024 + os.getpid() % 499
"""Stands in the command line of every box of this test run, so that they can be told from others."""


def boxed_code(*, timeout_s: float = 4.0, memory_mb: int = MEMORY_MB) -> Code:
    """Skips where there is no sandbox."""
    try:
        return Code(timeout_s=timeout_s, total_timeout_s=2 * timeout_s, memory_mb=memory_mb, num_parallel=3)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))


def boxes() -> list[int]:
    marker = f"'AS': {MEMORY_MB * 2**20}"
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if any(marker in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def attempt(action: str) -> str:
    """Return a program that says whether an action works, and exits 0 either way."""
    body = "\n".join(f"        {line}" for line in action.splitlines())
    return (
        f"def f():\n    import os, socket, glob\n    try:\n{body}\n"
        "        return 'done'\n    except (OSError, MemoryError) as error:\n        return 'blocked'\n"
    )


def tried(code: Code, action: str) -> str:
    """Return what the action came to, told by the program and found by the two tests of it."""
    program = fenced(attempt(action))
    done, blocked = code(completions=[program] * 2, tests=[["assert f() == 'done'"], ["assert f() == 'blocked'"]])
    assert {done, blocked} == {0.0, 1.0}
    return "done" if done else "blocked"
