"""Files and folders that are there whole or not at all, and the hash of a file. Nothing but the standard library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from unigrpo.errors import UserError


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Say in one line what the system has against a path that a user gave: absent, no folder, no permission, no space.

    Raises:
        UserError: naming the path.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        name = str(error.filename or path)
        shown = name if len(name) <= 300 else f"{name[:150]}...{name[-50:]} ({len(name):,} characters)"
        raise UserError(f"{shown}: {(error.strerror or str(error)).lower()}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, also after a crash.

    A lone surrogate, which no file can hold, is written as its escape; in JSON that is the same text.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write under; when the block ends, that file is synced and takes the path's place.

    When the block raises, the path is as it was and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends, it is synced and becomes ``path``, else nothing is left.

    Raises:
        OSError: if there is something at ``path`` other than an empty folder.
    """
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as outer:
        folder = Path(outer) / "whole"  # the outer one is readable to its owner alone
        folder.mkdir()
        yield folder
        sync_tree(folder)
        folder.replace(path)
    sync(path.parent)


def sha256_of(path: Path) -> str:
    """Return the hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Write a folder through to the disk: every file and folder below it, then itself."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk: a rename must survive a power cut, too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
