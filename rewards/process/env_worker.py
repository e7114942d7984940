"""What a worker with an ``env:`` is at first: it finds or builds the other interpreter, and turns into it.

It answers ``{"progress": …}`` while it builds, so that whoever waits knows that it is alive, then replaces itself by
the other interpreter running :mod:`unigrpo.rewards.process.worker` on the same socket. If there is no such
interpreter it answers as a worker does whose reward could not be made.

The other interpreter imports our source, and nothing else of ours: from a folder of links that holds this package
alone. A worker needs the standard library; pictures need pillow there, and arrays numpy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import unigrpo
import unigrpo.rewards
from unigrpo.rewards.process import wire
from unigrpo.rewards.process.environments import EnvError, env_home, foreign_environment, interpreter_of
from unigrpo.settings.rewards import EnvSettings

_START = (
    "import runpy, sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]; "
    "runpy.run_module('unigrpo.rewards.process.worker', run_name='__main__', alter_sys=True)"
)


def source_folder() -> Path:
    """Return a folder whose one entry is this package, wherever its parts are installed."""
    package, reward_folder = Path(unigrpo.__path__[0]).resolve(), Path(unigrpo.rewards.__path__[0]).resolve()
    targets = {entry.name: entry for entry in package.iterdir() if entry.name != "__pycache__"}
    targets["rewards"] = reward_folder
    listing = "\n".join(f"{name} {target}" for name, target in sorted(targets.items()))
    folder = env_home() / "sources" / hashlib.sha256(listing.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        partial = Path(scratch) / "partial"
        (partial / "unigrpo").mkdir(parents=True)
        for name, target in targets.items():
            (partial / "unigrpo" / name).symlink_to(target)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # Else somebody else was first, with the same links.
                raise
    return folder


def exec_worker(python: Path, descriptor: int) -> NoReturn:
    """Replace this process by a worker under another interpreter, on the same socket."""
    os.set_inheritable(descriptor, True)
    command = [str(python), "-c", _START, str(source_folder()), str(descriptor)]
    os.execve(python, command, foreign_environment(python))


def main(arguments: list[str]) -> None:
    """Run with the socket's file descriptor, the ``env:`` as JSON, and the recipe's folder (empty for none)."""
    descriptor, env, folder = int(arguments[0]), EnvSettings.model_validate_json(arguments[1]), arguments[2]
    connection = socket.socket(fileno=descriptor)
    try:
        python = interpreter_of(
            env,
            folder=Path(folder) if folder else None,
            progress=lambda line: wire.send(connection, {"progress": line}),
        )
    except wire.WireClosedError:
        sys.exit("whoever asked for the environment has gone")
    except EnvError as error:
        wire.send(connection, {"error": str(error), "traceback": "", "is_contract": False})
        connection.detach()
        return
    exec_worker(python, connection.detach())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("unigrpo").setLevel(logging.INFO)
    main(sys.argv[1:])
