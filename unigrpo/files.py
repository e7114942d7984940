"""Files and folders that are there whole or not at all, and the hash of a file. Nothing but the standard library."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unigrpo.errors import MissingFileError, StorageError, UserError

_LONGEST_SHOWN = 300
_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room, a quota used up, or a limit on the size of a file (`ulimit -f`)."""
STORAGE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENXIO)
"""What a file system says that takes nothing more, beside what is wrong with a path."""
_TEMPORARY = re.compile(r"\..+\.(?:(?P<owner>\d+)(?:-\w+)?|[0-9a-f]{12})")
"""Names under which files are written before they take their place, with the process that writes."""


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


def open_regular(path: Path) -> BufferedReader:
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


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Say in one line which path a full, read-only or failing disk does not take, and how much room is needed.

    Args:
        path: what the block writes, a file or a folder.
        num_bytes: that it writes, where it is known.

    Raises:
        StorageError: in place of the system's error; any other error stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        other = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        is_below = other.is_relative_to(path) or other.parent.is_relative_to(path.parent)
        raise storage_error(path if is_below else other, error, num_bytes) from error


def storage_error(path: Path, error: OSError, num_bytes: int | None = None) -> StorageError:
    """Return the error of a disk that does not take a path; ``num_bytes`` is what was to be written."""
    said = (error.strerror or str(error)).lower()
    wanted = "" if num_bytes is None else f"{shown_bytes(num_bytes)} needed, "
    room = f" ({wanted}{_free(path)})" if error.errno in FULL else ""
    found = StorageError(f"{path}: {said}{room}")
    found.errno = error.errno
    return found


def shown_bytes(num_bytes: int) -> str:
    """Return a size as people read it: 812 bytes, 3.4 MB, 21 GB."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    size, units = num_bytes / 1000, ["kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.2g} {units[0]}" if size < 10 else f"{size:.0f} {units[0]}"


def _free(path: Path) -> str:
    place = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    return f"{shown_bytes(shutil.disk_usage(place).free)} free"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, also after a crash.

    A lone surrogate, which no file can hold, is written as its escape; in JSON that is the same text.

    Raises:
        StorageError: if the disk is full, read-only or failing.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Give a name beside ``path`` to write under; when the block ends, that file is synced and takes the path's place.

    When the block raises, the path is as it was and nothing else is left. A process that is killed leaves the file,
    whose name has the process's number, for `sweep`.

    Raises:
        StorageError: if the disk is full, read-only or failing; it names ``path`` and the ``num_bytes`` to write.
    """
    temporary = path.with_name(f".{path.name}.{_owner()}")
    with writing(path, num_bytes):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def _owner() -> str:
    return f"{os.getpid()}-{os.urandom(6).hex()}"


def sweep(folder: Path) -> list[Path]:
    """Remove the files that killed processes wrote under a temporary name, here and below; return which.

    Only to be called where no other process writes but those that name themselves in their files: what belongs to one
    that lives is left alone. This process is taken to write nothing meanwhile: a number returns, in a container soon.
    """
    found = []
    for path in [path for path in folder.rglob(".*") if path.is_file() and not path.is_symlink()]:
        name = _TEMPORARY.fullmatch(path.name)
        if name is not None and not _lives(name["owner"]):
            path.unlink(missing_ok=True)
            found.append(path)
    return found


def _lives(owner: str | None) -> bool:
    """Return whether a process of that number runs, other than this one."""
    if owner is None or int(owner) == os.getpid():
        return False
    try:
        os.kill(int(owner), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends, it is synced and becomes ``path``, else nothing is left.

    Raises:
        OSError: if there is something at ``path`` other than an empty folder.
        StorageError: if the disk is full, read-only or failing.
    """
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as outer:
        folder = Path(outer) / "whole"  # the outer one is readable to its owner alone
        folder.mkdir()
        yield folder
        sync_tree(folder)
        folder.replace(path)
    sync(path.parent)


def sha256_of(path: Path) -> str:
    """Return the hash of a regular file, in hex."""
    with open_regular(path) as file:
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
