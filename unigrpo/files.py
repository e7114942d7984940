"""Files and folders that are there whole or not at all, and the hash of a file. Nothing but the standard library."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from unigrpo.errors import MissingFileError, UserError

_LONGEST_SHOWN = 300
_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
        raise UserError(f"{error.filename or path}: {(error.strerror or str(error)).lower()}") from error


def regular_file(path: Path) -> Path:
    """Return the path of something to read, links followed: reading a pipe, a socket or a device may never end.

    Raises:
        MissingFileError: if nothing is there.
        UserError: naming the path, if it is anything but a regular file, a loop of links included.
    """
    shown = text if len(text := str(path)) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"there is no file {shown}") from error
    except OSError as error:
        raise UserError(f"{shown}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # a zero byte
        raise UserError(f"{shown!r} is no path: {error}") from error
    if kind != stat.S_IFREG:
        raise UserError(f"{shown} is {_NO_FILES.get(kind, 'no regular file')}; wanted a regular file")
    return path


def optional_file(path: Path) -> Path | None:
    """Return the path of a file that may be absent, else None; what is there and cannot be read is refused.

    Raises:
        UserError: as :func:`regular_file`; also for a link that leads nowhere.
    """
    return regular_file(path) if os.path.lexists(path) else None


def open_regular(path: Path) -> BinaryIO:
    """Open a user's file for reading.

    Raises:
        MissingFileError: if nothing is there.
        UserError: naming the path, if it is no regular file or may not be read.
    """
    with usable(path):
        return regular_file(path).open("rb")


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Return a value as JSON that every reader takes: a number that is not finite, which JSON has no word for, is null.

    Scalars of numpy and torch are written as numbers. What was lost with a null is said where it arose: an alarm, a
    reward's status, the cause of a skipped update.

    Raises:
        TypeError: if a part is nothing that JSON knows.
    """
    return json.dumps(_plain(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key if isinstance(key, str | int | None) else str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
