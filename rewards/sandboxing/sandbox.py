"""A sandbox for hostile programs: bubblewrap, hard limits and a wall clock. It fails closed.

Each box is a fresh set of namespaces (users, processes, network, mounts, IPC) with a read-only ``/usr``, an interpreter
without its site packages, a small ``/tmp`` in memory and fewer system calls. Started by root it runs as *nobody*,
because the kernel does not count root's processes. The box ends with its context: the kernel ends every process of a
PID namespace whose first one is killed. Not a boundary against a kernel exploit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from unigrpo.rewards.sandboxing.memory_watch import MemoryWatch
from unigrpo.rewards.sandboxing.sandbox_harness import Channel, GoneError
from unigrpo.rewards.sandboxing.seccomp import filter_program

_LOGGER = logging.getLogger(__name__)

INSTALL_LINE = "apt-get install bubblewrap"
NOBODY = 65534
START_TIMEOUT_S = 60.0
"""For two interpreters to start on a machine that is busy."""
_BOOT = """import sys, types
for name, source in {sources!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    types.FunctionType(compile(source, name, "exec"), module.__dict__)()
"""


class SandboxError(RuntimeError):
    """The sandbox itself failed, not the program inside; no verdict is known."""


class SandboxUnavailableError(SandboxError):
    """This machine cannot give a sandbox: why, and the ways out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one box may use."""

    memory_mb: int = 1024
    """Address space of each process, and memory that all processes of the box hold together."""
    num_processes: int = 32
    """Processes and threads at one time, the interpreter and bubblewrap's own included."""
    disk_mb: int = 64
    """All of ``/tmp``, which is the only place to write."""
    num_files: int = 128
    """Open files of a process."""
    cpu_s: int = 60
    """Processor time of each process: the last resort behind the wall clock."""

    def as_rlimits(self, *, is_counting_processes: bool) -> dict[str, int]:
        """Return the kernel's names and units."""
        counted = {"NPROC": self.num_processes} if is_counting_processes else {}
        return counted | {
            "AS": self.memory_mb * 2**20,
            "FSIZE": self.disk_mb * 2**20,
            "NOFILE": self.num_files,
            "CPU": self.cpu_s,
            "CORE": 0,
        }


class Box:
    """A running sandbox with one role of the harness in it; a context that leaves nothing behind."""

    def __init__(
        self,
        command: Sequence[str],
        stdin: socket.socket,
        stdout: socket.socket | None,
        *,
        watch: MemoryWatch,
        pass_fds: Sequence[int] = (),
    ) -> None:
        is_root = os.geteuid() == 0
        self._process = subprocess.Popen(
            command,
            stdin=stdin.fileno(),
            stdout=subprocess.DEVNULL if stdout is None else stdout.fileno(),
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
            user=NOBODY if is_root else None,
            group=NOBODY if is_root else None,
            extra_groups=[] if is_root else None,
            pass_fds=pass_fds,
        )
        self._watched = contextlib.ExitStack()
        self._watched.enter_context(watch.of(self._process.pid, self._kill))

    @property
    def pid(self) -> int:
        """Return the process id of bubblewrap, outside."""
        return self._process.pid

    def problem(self) -> str:
        """End the box and return the last of what it printed before it was ready."""
        self.close()
        assert self._process.stderr is not None
        lines = _read_now(self._process.stderr.fileno()).splitlines()
        return lines[-1] if lines else f"it ended with code {self._process.returncode} and said nothing"

    def close(self) -> None:
        """End every process of the box."""
        self._watched.close()
        self._kill()
        self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        if self._process.stderr is not None:
            self._process.stderr.close()


def _read_now(descriptor: int) -> str:
    """Return what is in a pipe, without waiting for those who may still hold its other end."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 4096).decode(errors="replace").strip()
    except BlockingIOError:
        return ""


class Sandbox:
    """Starts boxes; made only where one has been seen to work.

    Example:
        >>> with Sandbox().candidate() as channel:
        ...     channel.send({"do": "load", "arguments": ["", "print(1)"]})
    """

    def __init__(
        self, *, limits: Limits | None = None, python: str | None = None, allow_unsafe_local: bool = False
    ) -> None:
        """Try a box.

        Args:
            limits: of each box.
            python: the interpreter inside (3.10 or later), which the user *nobody* must be able to read when root
                starts boxes; None takes this one's base interpreter, then the system's.
            allow_unsafe_local: go without bubblewrap: limits and a wall clock alone, with network and all files that
                this user (or, for root, *nobody*) can read.

        Raises:
            SandboxUnavailableError: if no box works here.
        """
        self.limits = limits or Limits()
        self._watch = MemoryWatch(self.limits.memory_mb * 2**20)
        self.is_unsafe = allow_unsafe_local
        if allow_unsafe_local:
            _LOGGER.warning(
                "allow_unsafe_local: programs of the policy run on this machine with network access and the rights of "
                "%s; only limits and a wall clock hold them",
                "nobody" if os.geteuid() == 0 else "this user",
            )
        elif shutil.which("bwrap") is None:
            raise SandboxUnavailableError(_unavailable("the program bwrap is not installed"))
        reasons = []
        for interpreter in _interpreters(python):
            self._interpreter = str(interpreter)
            self._fence = [] if self.is_unsafe else _fence_of(interpreter, self.limits)
            reason = self._try()
            if not reason:
                return
            reasons.append(f"{interpreter}: {reason}")
        raise SandboxUnavailableError(_unavailable("; ".join(reasons) or "no interpreter was found"))

    @contextlib.contextmanager
    def candidate(self) -> Iterator[Channel]:
        """Start a box for a program and give the channel to it, ready to be asked.

        Raises:
            SandboxError: if it does not start.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                box = self._box("candidate", theirs, None)
            with box:
                channel = Channel(ours.fileno())
                _expect_ready(channel, box)
                yield channel

    @contextlib.contextmanager
    def judge(self) -> Iterator[tuple[Channel, Box]]:
        """Start a box for a judge and one for its candidate; give the channel to the judge, who waits for its order."""
        ours, control = socket.socketpair()
        asking, answering = socket.socketpair()
        with ours, contextlib.ExitStack() as boxes:
            with control, asking, answering:
                box = boxes.enter_context(self._box("candidate", answering, None))
                boxes.enter_context(self._box("judge", control, asking))
            yield Channel(ours.fileno()), box

    def _box(self, role: str, stdin: socket.socket, stdout: socket.socket | None) -> Box:
        limits = self.limits.as_rlimits(is_counting_processes=not self.is_unsafe)
        source = f"{joined_sources('sandbox_harness', 'sandbox_judge')}module.main({role!r}, {limits!r})\n"
        inside = [self._interpreter, "-I", "-S", "-c", source]
        try:
            with contextlib.nullcontext(()) if self.is_unsafe else _filter() as pass_fds:
                options = [word for number in pass_fds for word in ("--seccomp", str(number))]
                return Box([*self._fence, *options, *inside], stdin, stdout, watch=self._watch, pass_fds=pass_fds)
        except OSError as error:
            raise SandboxError(f"a sandbox could not be started: {error}") from error

    def _try(self) -> str:
        """Return why a box does not work, an empty text where it does."""
        try:
            with self.candidate() as channel:
                channel.send({"do": "load", "arguments": ["", "answer = 42"]}, time.monotonic() + START_TIMEOUT_S)
                reply = channel.receive(time.monotonic() + START_TIMEOUT_S)
        except SandboxError as error:
            return str(error)
        except GoneError as error:
            return f"it {error}"
        return "" if reply == {"reply": ["answer"]} else f"it answered {reply}"


def _fence_of(interpreter: Path, limits: Limits) -> list[str]:
    """Return bubblewrap and its options."""
    prefix = interpreter.parent.parent
    mounts = ["--ro-bind", "/usr", "/usr"]
    if not prefix.is_relative_to("/usr"):
        mounts += ["--ro-bind", str(prefix), str(prefix)]
    for folder in map(Path, ("/lib", "/lib64", "/bin")):
        if folder.is_symlink():
            mounts += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.is_dir():
            mounts += ["--ro-bind", str(folder), str(folder)]
    for device in ("null", "random", "urandom"):  # Not zero: a shared map of it is memory of no process.
        mounts += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    variables = [word for name, value in environment.items() for word in ("--setenv", name, value)]
    own = f"--hostname sandbox --uid {NOBODY} --gid {NOBODY} --cap-drop ALL"
    inside = f"--proc /proc --size {limits.disk_mb * 2**20} --tmpfs /tmp --chdir /tmp --remount-ro /"
    spaces = ["--unshare-all", "--unshare-user", *_extra_options(), "--die-with-parent", "--new-session", "--clearenv"]
    return [_bubblewrap(), *spaces, *variables, *own.split(), *mounts, *inside.split()]


@contextlib.contextmanager
def _filter() -> Iterator[Sequence[int]]:
    """Give the open file of the filter of system calls; none on a machine that it is not made for."""
    program = filter_program()
    if program is None:
        yield ()
        return
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.seek(0)
        yield (file.fileno(),)


def joined_sources(*names: str) -> str:
    """Return modules of this folder as one program without imports of ours; ``module`` is the last of them."""
    folder = Path(__file__).parent
    sources = {f"{__package__}.{name}": (folder / f"{name}.py").read_text() for name in names}
    return _BOOT.format(sources=sources)


def _interpreters(python: str | None) -> list[Path]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [python] if python else [f"{sys.base_prefix}/bin/{version}", "/usr/bin/python3", "/usr/local/bin/python3"]
    found = [shutil.which(name) for name in wanted]
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in found if path))


def _bubblewrap() -> str:
    """Return the program that was found when its presence was tried, wherever it lies."""
    return shutil.which("bwrap") or "bwrap"


@cache
def _extra_options() -> tuple[str, ...]:
    """Return the options that only later versions of bubblewrap have."""
    done = subprocess.run(
        [_bubblewrap(), "--help"], capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S
    )
    return ("--disable-userns",) if "--disable-userns" in done.stdout + done.stderr else ()


def _expect_ready(channel: Channel, box: Box) -> None:
    try:
        message = channel.receive(time.monotonic() + START_TIMEOUT_S)
    except GoneError as error:
        raise SandboxError(f"a sandbox did not start: {box.problem()}") from error
    if message != {"ready": True}:
        raise SandboxError(f"a sandbox did not start: it said {message}")


def _unavailable(reason: str) -> str:
    return (
        f"there is no sandbox for programs on this machine: {reason}. Install bubblewrap ({INSTALL_LINE}) and let "
        "unprivileged users make user namespaces; or set sandbox_url to a SandboxFusion server; or, only where the "
        "machine itself may be lost, set allow_unsafe_local: true"
    )
