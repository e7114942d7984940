"""The harness on a server that runs one program and returns what it printed: judge and candidate are two processes.

The judge's process reads its order from its own source, removes that file, and forbids other processes of its user to
look into it; then it starts the candidate as a child with its own output closed (as *nobody*, if it is root). Reports
are lines that begin with the order's nonce.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from unigrpo.rewards.sandboxing.sandbox_harness import Candidate, Channel, GoneError, Trap
from unigrpo.rewards.sandboxing.sandbox_judge import Client, CodeTestRunner

_NOBODY = 65534
_PR_SET_DUMPABLE = 4
_MAX_VALUES = 4 * 2**20
"""Characters of all values of a program, so that it cannot make the server's reply too long to be read."""


def _print(message: dict[str, Any]) -> None:
    """Print a report behind its nonce."""
    os.write(1, f"\n{message['nonce']} {json.dumps(message)}\n".encode())


def main(order: dict[str, Any], source: str) -> None:
    """Carry out an order; ``source`` is what the candidate's process runs."""
    with Trap() as trap:
        _hide()
    if trap.error is not None:
        _print({"nonce": order["nonce"], "trouble": f"the judge cannot hide its tests: {trap.error!r}"})
        return
    ours, theirs = socket.socketpair()
    child = None
    with Trap() as trap:
        child = _started(source, theirs)
        theirs.close()
    if child is None:
        _print({"nonce": order["nonce"], "trouble": f"no process for the program: {trap.error!r}"})
        return
    with Trap() as trap:
        client = Client(Channel(ours.fileno()))
        judge = CodeTestRunner(order, client, _print)
        client.expect_ready(time.monotonic() + order["start_timeout_s"])
        judge.report(ready=True)
        if order["kind"] == "tests":
            judge.run()
        else:
            _call(order, judge, client)
    child.kill()
    if trap.error is not None:
        _print({"nonce": order["nonce"], "stopped": type(trap.error).__name__})


def _started(source: str, stdin: socket.socket) -> subprocess.Popen[bytes]:
    """Start the candidate's process; as *nobody*, who may have to use the system's interpreter, when this is root."""
    is_root = os.geteuid() == 0
    interpreters = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
    for interpreter in interpreters:
        try:
            return subprocess.Popen(
                [interpreter, "-I", "-S", "-c", source],
                stdin=stdin.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                start_new_session=True,
                user=_NOBODY if is_root else None,
                group=_NOBODY if is_root else None,
                extra_groups=[] if is_root else None,
            )
        except (PermissionError, FileNotFoundError):
            continue
    raise PermissionError(f"nobody may run any of {interpreters}; let the server run as an unprivileged user")


def candidate_main() -> None:
    """Serve as the candidate on descriptor 0."""
    channel = Channel(os.dup2(0, 10, inheritable=False))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    channel.send({"ready": True})
    with Trap():
        Candidate().serve(channel)


def _hide() -> None:
    """Remove the file with the tests and close this process to its user's others."""
    if os.path.exists(sys.argv[0]):
        os.unlink(sys.argv[0])
    import ctypes

    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl failed")


def _call(order: dict[str, Any], judge: CodeTestRunner, client: Client) -> None:
    """Report what each call gives, as it came; what was wanted never travels."""
    try:
        client.deadline = time.monotonic() + order["timeout_s"]
        with Trap() as trap:
            client.ask("load", order["setup"], order["program"])
        if trap.error is not None and not client.gone:
            judge.report(stopped=f"{type(trap.error).__name__}: {trap.error}"[:200])
            return
        num_left = _MAX_VALUES
        for index, arguments in enumerate(order["calls"]):
            client.deadline = time.monotonic() + order["timeout_s"]
            with Trap() as trap:
                reply = client.ask("call", client.ask("get", order["entry_point"]), arguments, {})
                num_left -= len(json.dumps(reply["value"]))
                if num_left < 0:
                    raise ValueError(f"the values of all calls have more than {_MAX_VALUES} characters")
                judge.report(index=index, value=reply["value"])
            if client.gone:
                break
            if trap.error is not None:
                judge.report(index=index, raised=f"{type(trap.error).__name__}: {trap.error}"[:200])
    except GoneError:
        pass
    judge.report(**({"stopped": client.gone} if client.gone else {"done": True}))
