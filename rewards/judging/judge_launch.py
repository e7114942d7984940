"""Start a judge's server, wait until it answers, and stop it with the run."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.rewards.judging import judge_guard
from unigrpo.rewards.process import tags
from unigrpo.rewards.process.child import THREAD_VARIABLES

_LOGGER = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_NUM_LINES_SHOWN = 20
_TAIL_BYTES = 1 << 16
_MAX_REPLY_BYTES = 1 << 20
_PROBE_TIMEOUT_S = 2.0
_POLL_S = 0.2
_PROGRESS_S = 15.0
_WORKERS_OWN = (*THREAD_VARIABLES, "PYTHONPATH")
"""Set for reward workers; a server has threads and, often, an environment of its own."""


class LaunchError(RuntimeError):
    """A server did not start: why, and the last lines of its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """What to start."""

    model: str = ""
    """What ``vllm serve`` gets: a hub id or a folder."""
    arguments: tuple[str, ...] = ()
    """Added to the command, such as ``--max-model-len 8192``."""
    command: tuple[str, ...] = ()
    """Command in place of ``vllm serve``; ``{port}`` and ``{model}`` are filled in."""
    port: int = 0
    """0 is any free one."""
    gpus: tuple[int, ...] | None = None
    """Numbers for CUDA_VISIBLE_DEVICES; None leaves it as it is."""
    start_timeout_s: float = 540.0
    """The whole start, downloads included; below the 600 s that a reward has to load."""
    log: str | None = None
    """A file for the server's output; None is one in the temporary folder."""


def launch_of(given: Mapping[str, Any]) -> Launch:
    """Return the ``launch`` of a recipe.

    Raises:
        ValueError: for an entry that is unknown or of the wrong kind.
    """
    known = [entry.name for entry in dataclasses.fields(Launch)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"launch knows no {', '.join(unknown)}; it takes {', '.join(known)}")
    entries = dict(given)
    for name in ("arguments", "command"):
        value = entries.get(name, ())
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"launch: {name}: {value!r}; give a list of words, one an argument")
        entries[name] = tuple(str(word) for word in value)
    if entries.get("gpus") is not None:
        entries["gpus"] = tuple(int(gpu) for gpu in entries["gpus"])
    launch = Launch(**entries)
    if not launch.model and not launch.command:
        raise ValueError("launch needs model, what vllm is to serve, or command, another server's command as a list")
    if launch.command and not launch.port and not any("{port}" in word for word in launch.command):
        raise ValueError("launch: command has no '{port}'; put it where the server takes its port, or give port")
    if not 0 <= launch.port < 65536 or not launch.start_timeout_s > 0:
        raise ValueError(f"launch: port {launch.port} (0 to 65535), start_timeout_s {launch.start_timeout_s} (above 0)")
    return launch


class LaunchedServer:
    """A server on this machine's loopback that lives as long as this object and this process, and no longer."""

    def __init__(self, launch: Launch) -> None:
        """Start the server and wait until it answers.

        Raises:
            LaunchError: if it ends, or does not answer in time.
        """
        self._launch = launch
        self._port = launch.port or _free_port()
        self.url = f"http://{_HOST}:{self._port}/v1"
        command = _command(launch, self._port)
        self._log = _log_file(launch.log)
        _LOGGER.info("judge: starting %s; its log is %s", " ".join(command), self._log)
        with self._log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", judge_guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(launch.gpus),
                start_new_session=True,  # A kill of this process's group must leave the guard, which then cleans up.
            )
        self._finalizer = weakref.finalize(self, _end, self._guard)
        self.model = ""
        """The first model that the server names, else the one that it was started with."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.model = self._wait_until_ready()
            undo.pop_all()

    def close(self) -> None:
        """Stop the server and wait until it is gone; harmless when it is."""
        self._finalizer()

    def _wait_until_ready(self) -> str:
        start_s = time.monotonic()
        next_word_s = start_s + _PROGRESS_S
        while True:
            model = _served_model(self._port)
            seconds = time.monotonic() - start_s
            if self._guard.poll() is not None:
                raise LaunchError(self._problem(f"ended with code {self._guard.returncode} after {seconds:.0f} s"))
            if model is not None:
                _LOGGER.info("judge: %s is ready after %.0f s on port %d", model, seconds, self._port)
                return model or self._launch.model
            if seconds > self._launch.start_timeout_s:
                late = f"did not answer within start_timeout_s: {self._launch.start_timeout_s:g}"
                raise LaunchError(self._problem(late))
            if time.monotonic() > next_word_s:
                next_word_s += _PROGRESS_S
                last = (tail(self._log, 1) or ["no output yet"])[-1]
                _LOGGER.info("judge: waiting for the server since %.0f s: %s", seconds, last)
            time.sleep(_POLL_S)

    def _problem(self, what: str) -> str:
        lines = tail(self._log, _NUM_LINES_SHOWN)
        end = "\n".join(f"  {line}" for line in lines) if lines else "  (no output)"
        return f"the judge's server {what}. The end of its log, {self._log}:\n{end}"


def tail(path: Path, num_lines: int) -> list[str]:
    """Return the last lines of a log, without control characters."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines[-num_lines:]]


def _command(launch: Launch, port: int) -> list[str]:
    if launch.command:
        filled = [word.replace("{port}", str(port)).replace("{model}", launch.model) for word in launch.command]
        program = shutil.which(filled[0])
        if program is None:
            raise LaunchError(f"launch: there is no program {filled[0]!r}; give the full path or install it")
        return [program, *filled[1:], *launch.arguments]
    beside = Path(sys.executable).parent / "vllm"
    program = str(beside) if beside.is_file() else shutil.which("vllm")
    if program is None:
        raise LaunchError(
            "launch: there is no vllm here; pip install 'unigrpo[vllm]', or name one of another environment: "
            "command: [/path/to/vllm, serve, '{model}', --host, 127.0.0.1, --port, '{port}']"
        )
    return [program, "serve", launch.model, "--host", _HOST, "--port", str(port), *launch.arguments]


def _log_file(log: str | None) -> Path:
    if log is not None:
        return Path(log).expanduser().absolute()
    descriptor, name = tempfile.mkstemp(prefix="unigrpo-judge-", suffix=".log")
    os.close(descriptor)
    return Path(name)


def _environment(gpus: tuple[int, ...] | None) -> dict[str, str]:
    own = {name for name in os.environ if name.startswith(tags.PREFIX)}  # A kill of this process must leave the guard.
    environment = {name: value for name, value in os.environ.items() if name not in own.union(_WORKERS_OWN)}
    return environment if gpus is None else environment | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _served_model(port: int) -> str | None:
    """Return the first model that a server names, "" where it runs without naming one, None where it is not ready."""
    status, payload = _get(port, "/v1/models")
    if status in (401, 403, 404):
        return "" if _get(port, "/health")[0] == 200 else None
    if status != 200:
        return None
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    models = document.get("data") if isinstance(document, dict) else None
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else ""


def _get(port: int, path: str) -> tuple[int, bytes]:
    """Return the status and the body of a local page; status 0 where nothing answers."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(_MAX_REPLY_BYTES)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _end(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(judge_guard.GRACE_S + 5.0)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
