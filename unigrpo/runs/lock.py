"""A run directory belongs to one process: the lock goes with the process, also by SIGKILL. Torch-free."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unigrpo.errors import UserError
from unigrpo.files import writing

LOCK = ".lock"


@contextmanager
def locked(run_dir: Path, *, has_lock: bool = True) -> Iterator[None]:
    """Keep a run directory to this process.

    Args:
        run_dir: an existing folder.
        has_lock: false takes no lock, for a file system that has none; no other process may then work in the folder.

    Raises:
        UserError: if another process works in it, or the folder cannot be locked.
    """
    if not has_lock:
        yield
        return
    descriptor = _take(run_dir)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def holder_of(run_dir: Path) -> str | None:
    """Return the process that works in a directory, as an error would name it; None where it is not locked."""
    if not (run_dir / LOCK).is_file():
        return None
    descriptor = os.open(run_dir / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _said(descriptor)
    except OSError:  # A file system without locks: nobody can hold one.
        return None
    finally:
        os.close(descriptor)
    return None


def _take(run_dir: Path) -> int:
    """Return the descriptor of the lock file, locked; a file that was removed meanwhile locks nothing."""
    path = run_dir / LOCK
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_at(descriptor, path):
                return descriptor
        except BlockingIOError as error:
            holder = _said(descriptor)
            os.close(descriptor)
            raise UserError(f"{holder} works in {run_dir}; wait until it ends, or stop it") from error
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{run_dir} cannot be locked ({(error.strerror or str(error)).lower()}); its file system may not know "
                "locks: name a folder on another one, or give --no-lock if no other process works in it"
            ) from error
        os.close(descriptor)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    with writing(path):
        try:
            descriptor = os.open(path, flags, 0o666)
        except (IsADirectoryError, FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path}: {(error.strerror or str(error)).lower()}; remove it to go on") from error
        except OSError as error:
            if path.is_symlink():
                raise UserError(f"{path} is a link; remove it to go on") from error
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no plain file; remove it to go on")
    return descriptor


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _said(descriptor: int) -> str:
    number = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return f"process {number if number.isdecimal() else 'unknown'}"
