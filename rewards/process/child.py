"""A killable child process and the loop that runs inside it.

A child is a fresh interpreter (``python -m MODULE``), not a fork and not ``multiprocessing``: a script without a
``__main__`` guard, a thread, an asyncio loop and a Ray actor can all start one, no signal handler of the parent is
touched, and nothing of the parent is inherited but one socket. What it started dies with it: it leads its own process
group, and its environment has a tag (:mod:`unigrpo.rewards.process.tags`) by which those are found that left the
group. Where there is no /proc, only the group dies.

When its parent dies, even by SIGKILL, the socket closes and the child's reader thread ends all of these; a call that
holds the interpreter lock is ended by a CPU timer of the kernel (SIGPROF), which needs no Python to run, but then
nobody looks for those that left the group.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from unigrpo.rewards.process import tags, wire

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MEMBER_VARIABLE = tags.PREFIX + "GROUP"
"""Set inside a child: what it starts in turn stays in its process group, so that one kill ends all."""
_CPU_GRACE_S = 5.0
_CPU_FACTOR = 4.0
"""CPU seconds may exceed wall seconds in a call with threads; the timer is the last resort, so it is generous."""

Send = Callable[[Mapping[str, Any]], None]
Handler = Callable[[dict[str, Any], Send], None]


class ChildDiedError(RuntimeError):
    """The child ended before it answered; the message holds the exit code or signal."""

    is_out_of_cpu_time = False
    """Whether the ``cpu_s`` of its message, or the last resort of ``deadline_s``, ended it."""


class ChildTimeoutError(TimeoutError):
    """The child did not answer in time and has been killed."""


class Child:
    """A running child. Not thread-safe: callers take turns."""

    def __init__(self, module: str, *, num_threads: int = 1, arguments: Sequence[str] = ()) -> None:
        """Start ``python -m module``; returns at once, while the child imports.

        The module's main block calls :func:`serve`; numeric libraries may use ``num_threads`` CPU threads there, and
        ``arguments`` follow the socket's file descriptor on its command line.
        """
        ours, theirs = socket.socketpair()
        environment = os.environ | {name: str(num_threads) for name in THREAD_VARIABLES}
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        leads_group = _MEMBER_VARIABLE not in environment
        environment[_MEMBER_VARIABLE] = "1"
        tag = tags.add_tag(environment)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # What user code prints is for people, so it goes where logging goes.
                env=environment,
                start_new_session=leads_group,
            )
        self._process = process
        self._socket = ours
        self._finalizer = weakref.finalize(self, _end, process, ours, leads_group, tag, os.getpid())

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs and may be asked."""
        return self._finalizer.alive and self._process.poll() is None

    def send(self, message: Mapping[str, Any], *, timeout_s: float = 60.0) -> None:
        """Send a message; a child that is gone or does not read is dead.

        Raises:
            ChildDiedError: if the child has ended.
            ChildTimeoutError: if it does not read.
        """
        self.send_frame(wire.encode(message), timeout_s=timeout_s)

    def receive(self, *, timeout_s: float) -> dict[str, Any]:
        """Return the next message of the child, which is killed if there is none in time.

        Raises:
            ChildDiedError: if the child has ended.
            ChildTimeoutError: after ``timeout_s`` seconds.
        """
        return wire.decode(self.receive_frame(timeout_s=timeout_s))

    def send_frame(self, frame: bytes, *, timeout_s: float) -> None:
        """Send a message that is encoded already; as :meth:`send`."""
        with self._ends(f"read nothing for {timeout_s:g} s"):
            wire.send_frame(self._socket, frame, timeout_s)

    def receive_frame(self, *, timeout_s: float) -> bytes:
        """Return the next message as it came; as :meth:`receive`."""
        with self._ends(f"gave no answer in {timeout_s:g} s"):
            return wire.receive_frame(self._socket, timeout_s)

    @contextlib.contextmanager
    def _ends(self, problem: str) -> Iterator[None]:
        """Turn a closed or silent socket into how the child ended."""
        try:
            yield
        except wire.WireClosedError as error:
            death = ChildDiedError(self._exit_report())
            death.is_out_of_cpu_time = self._process.returncode == -signal.SIGPROF
            raise death from error
        except wire.WireTimeoutError as error:
            self.kill()
            raise ChildTimeoutError(f"process {self.pid} {problem} and was killed") from error

    def kill(self) -> None:
        """End the child and all that it started; harmless when it is gone."""
        self._finalizer()

    def _exit_report(self) -> str:
        """Return how the child ended, after making sure that it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        self.kill()
        code = self._process.returncode
        if code is not None and code < 0:
            hint = " (killed from outside or out of memory)" if code == -signal.SIGKILL else ""
            return f"process {self.pid} was ended by {signal.Signals(-code).name}{hint}"
        return f"process {self.pid} exited with code {code}"


def _end(
    process: subprocess.Popen[bytes], connection: socket.socket, leads_group: bool, tag: str, owner_pid: int
) -> None:
    connection.close()
    if os.getpid() != owner_pid:
        return  # A fork of the owner: the child is not ours.
    if leads_group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # Before wait: the number is ours until the process is reaped.
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    tags.end_tagged(tag)


def limit_memory(num_gb: float) -> None:
    """Limit the address space of this process: an answer that explodes raises MemoryError in the verifier."""
    limit = int(num_gb * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def unlimit_memory() -> None:
    """Take a limit of this process back."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def serve(handle: Handler, arguments: list[str]) -> None:
    """Answer messages until the parent closes the socket or dies. Runs in the child's main thread.

    A message may hold ``deadline_s``, the time to each of its replies; then a call that burns far more CPU than that is
    ended by the kernel even if it holds the interpreter lock and the parent is gone. With ``cpu_s`` that is the limit,
    to the letter: CPU seconds to each reply that is not ``is_partial``, so that a busy machine takes nothing from them.
    A message that this interpreter cannot unpack comes as ``{"unreadable": reason}``.
    ``handle`` gets each message and a function that sends a reply; ``arguments`` start with the socket's descriptor.
    """
    connection = socket.socket(fileno=int(arguments[0]))
    reading = connection.dup()
    os.register_at_fork(after_in_child=lambda: _close(connection, reading))
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(reading, messages), daemon=True, name="reader")
    reader.start()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    owner = os.getpid()
    while True:
        message = messages.get()
        deadline_s = message.get("deadline_s")
        limit_s = 0.0 if deadline_s is None else _CPU_FACTOR * (deadline_s + _CPU_GRACE_S)
        limit_s = message.get("cpu_s", limit_s)

        def reply(answer: Mapping[str, Any], limit_s: float = limit_s) -> None:
            if os.getpid() != owner:
                os._exit(0)  # A fork that user code made and that came back: one answer is enough.
            if "is_partial" not in answer:
                signal.setitimer(signal.ITIMER_PROF, limit_s)
            _reply(connection, answer)

        signal.setitimer(signal.ITIMER_PROF, limit_s)
        handle(message, reply)
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _close(*connections: socket.socket) -> None:
    """Let a fork that user code makes go of the sockets: while it had them, nobody would see that the child died."""
    for connection in connections:
        connection.close()


def _read(connection: socket.socket, messages: queue.SimpleQueue[dict[str, Any]]) -> None:
    while True:
        try:
            messages.put(wire.receive(connection))
        except wire.WireUnreadableError as error:
            messages.put({"unreadable": str(error)})
        except wire.WireClosedError:
            _end_all()


def _reply(connection: socket.socket, reply: Mapping[str, Any]) -> None:
    try:
        wire.send(connection, reply)
    except wire.WireClosedError:
        _end_all()


def _end_all() -> NoReturn:
    """End this process and all that it started."""
    tag = tags.own_tag()
    if tag is not None:
        tags.end_tagged(tag)
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
        time.sleep(1.0)
    os._exit(1)
