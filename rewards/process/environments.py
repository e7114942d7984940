"""Interpreters of their own for rewards whose packages conflict with ours: found, or built once by pip and kept.

A built one is a virtual environment under ``$UNIGRPO_HOME/envs`` (by default ``~/.cache/unigrpo/envs``), named by a
hash of its requirements and of the Python that it is for. Whoever comes first builds it, the others wait; one that
failed leaves nothing. Delete its folder to have it built anew.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.errors import UserError
from unigrpo.files import write_atomically
from unigrpo.settings.rewards import EnvSettings

_LOGGER = logging.getLogger(__name__)

MIN_VERSION = (3, 10)
"""What the code of a reward's worker is written in."""
_HIDDEN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""They would show our packages to another interpreter, or make it believe that it is ours."""
_INSTALLED = "installed.txt"
"""What pip installed. Written last: an environment without it is unfinished."""
_REQUIREMENTS = "requirements.txt"
_NUM_LINES_SHOWN = 20
_PROBE_TIMEOUT_S = 60.0
_POLL_S = 1.0
_HEARTBEAT_S = 15.0
_MAX_SILENCE_S = 3600.0
"""Longest silence of pip: unpacking or compiling a large package takes minutes without a line."""
_SHOWN_STARTS = ("Collecting", "Downloading", "Processing", "Building", "Installing", "Successfully", "ERROR")
_PROBE = "import json, sys; print(json.dumps([sys.version_info[:3], sys._base_executable]))"

Progress = Callable[[str], None]


class EnvError(UserError):
    """An interpreter that is not there, or could not be built; the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Python:
    version: tuple[int, ...]
    base: str
    """The executable of the installation that it belongs to."""

    @property
    def shown(self) -> str:
        return ".".join(map(str, self.version))


def interpreter_of(env: EnvSettings, *, folder: Path | None, progress: Progress) -> Path:
    """Return the interpreter of an ``env:``, built first where need be.

    A relative ``python`` starts at ``folder`` (None: the working directory); ``progress`` is told of each step, and
    what it raises ends the build.

    Raises:
        EnvError: if there is no such interpreter, it does not run, is too old, or its packages do not install.
    """
    if env.python is not None:
        path = Path(os.path.abspath((folder or Path.cwd()) / Path(env.python).expanduser()))
        _probed(path)
        return path
    assert env.requirements is not None
    lines = sorted({line.strip() for line in env.requirements} - {""})
    creator = _creator(env.python_version)
    is_ours = creator == Path(sys.executable)
    python = _Python(version=sys.version_info[:3], base=sys._base_executable) if is_ours else _probed(creator)  # type: ignore[attr-defined]
    return _built(lines, creator, python, progress)


def env_home() -> Path:
    """Return where environments are kept."""
    home, cache = os.environ.get("UNIGRPO_HOME"), os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home).expanduser().absolute()
    return (Path(cache) if cache else Path.home() / ".cache") / "unigrpo"


def foreign_environment(python: Path) -> dict[str, str]:
    """Return the environment variables of a process under another interpreter: none that shows it our packages."""
    kept = {name: value for name, value in os.environ.items() if name not in _HIDDEN_VARIABLES}
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    return kept | {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PATH": path}


def _creator(version: str | None) -> Path:
    if version is None or version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    found = shutil.which(f"python{version}")
    if found is None:
        raise EnvError(f"there is no python{version} on the path; install it, or leave python_version out")
    return Path(found)


def _probed(path: Path) -> _Python:
    """Return what an interpreter says of itself."""
    try:
        options: dict[str, Any] = {"env": foreign_environment(path), "text": True, "timeout": _PROBE_TIMEOUT_S}
        said = subprocess.check_output([path, "-c", _PROBE], stderr=subprocess.PIPE, **options)
        version, base = json.loads(said)
    except FileNotFoundError as error:
        raise EnvError(f"there is no interpreter {path}; give the bin/python of an environment") from error
    except subprocess.CalledProcessError as error:
        ended = f"exit code {error.returncode}): {error.stderr[-500:]}"
        raise EnvError(f"{path} does not run as Python ({ended}") from error
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as error:
        raise EnvError(f"{path} does not run as Python ({error}); give the bin/python of an environment") from error
    if tuple(version) < MIN_VERSION:
        given, wanted = (".".join(map(str, numbers)) for numbers in (version, MIN_VERSION))
        raise EnvError(f"{path} is Python {given}; a reward's worker runs under {wanted} or newer")
    return _Python(version=tuple(version), base=base)


def _built(lines: Sequence[str], creator: Path, python: _Python, progress: Progress) -> Path:
    """Return the interpreter of the environment that holds some requirements."""
    key = json.dumps([lines, python.version, os.path.realpath(python.base), platform.machine()])
    folder = env_home() / "envs" / hashlib.sha256(key.encode()).hexdigest()[:16]
    interpreter = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock"), progress):
        if (folder / _INSTALLED).is_file() and interpreter.exists():
            return interpreter
        _remove(folder)  # Of a build that was killed, or whose Python is gone.
        _LOGGER.info("building %s with Python %s: %s", folder, python.shown, ", ".join(lines) or "no packages")
        start_s = time.monotonic()
        with contextlib.ExitStack() as undo:
            undo.callback(_remove, folder)
            _build(folder, lines, creator, progress)
            undo.pop_all()
        _LOGGER.info("built %s in %.0f s", folder, time.monotonic() - start_s)
    return interpreter


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends."""
    with path.open("w") as file:
        is_first = True
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if is_first:
                    _LOGGER.info("waiting for the process that builds %s", path.with_suffix(""))
                is_first = False
                progress("another process builds the environment")
                time.sleep(_POLL_S)
        yield


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _build(folder: Path, lines: Sequence[str], creator: Path, progress: Progress) -> None:
    interpreter = folder / "bin" / "python"
    has_pip = importlib.util.find_spec("pip") is not None  # Our own can install into another, and takes no unpacking.
    options = ["--without-pip"] if has_pip or not lines else []
    _run([str(creator), "-m", "venv", *options, str(folder)], f"python -m venv {folder}", progress)
    (folder / _REQUIREMENTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    installed: list[str] = []
    if lines:
        theirs = [str(interpreter), "-m", "pip"]
        pip = [sys.executable, "-m", "pip", "--python", str(interpreter)] if has_pip else theirs
        pip += ["--no-input", "--disable-pip-version-check"]
        install = [*pip, "install", "--progress-bar", "off", "-r", str(folder / _REQUIREMENTS)]
        _run(install, f"pip install {' '.join(lines)}", progress)
        installed = _run([*pip, "list", "--format", "freeze"], "pip list", progress)
    write_atomically(folder / _INSTALLED, "".join(f"{line}\n" for line in installed))


def _run(command: Sequence[str], shown: str, progress: Progress) -> list[str]:
    """Run a command, with its lines as progress, and return the last of them."""
    lines: collections.deque[str] = collections.deque(maxlen=1000)
    process = subprocess.Popen(
        command,
        env=foreign_environment(Path(command[0])),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    with process, contextlib.ExitStack() as undo:
        undo.callback(process.kill)
        for line in _lines_of(process.stdout.fileno(), shown):
            progress(line.strip())
            if line:
                lines.append(line)
                level = logging.INFO if line.lstrip().startswith(_SHOWN_STARTS) else logging.DEBUG
                _LOGGER.log(level, "%s", line.strip())
        undo.pop_all()
    if process.returncode:
        last = "\n".join(list(lines)[-_NUM_LINES_SHOWN:])
        raise EnvError(f"`{shown}` failed with exit code {process.returncode}; its last lines:\n{last}")
    return list(lines)


def _lines_of(descriptor: int, shown: str) -> Iterator[str]:
    """Yield what a command says, line by line, and an empty line now and then while it says nothing."""
    pending, said_s = b"", time.monotonic()
    while True:
        ready, _, _ = select.select([descriptor], [], [], _HEARTBEAT_S)
        if not ready:
            if time.monotonic() - said_s > _MAX_SILENCE_S:
                raise EnvError(f"`{shown}` said nothing for {_MAX_SILENCE_S / 60:.0f} minutes and was ended")
            yield ""
            continue
        chunk, said_s = os.read(descriptor, 1 << 16), time.monotonic()
        if not chunk:
            break
        *whole, pending = (pending + chunk).split(b"\n")
        yield from (line.decode(errors="replace").rstrip() for line in whole)
    if pending:
        yield pending.decode(errors="replace").rstrip()
