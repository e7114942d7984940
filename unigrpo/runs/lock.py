"""A run directory belongs to one process: the lock goes with the process, also by SIGKILL. Torch-free."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unigrpo.errors import StorageError, UserError
from unigrpo.files import usable, writing

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
        _note(descriptor, run_dir / LOCK)
        yield
    finally:
        os.close(descriptor)


def refuse_used(run_dir: Path) -> None:
    """Refuse a folder for a new run that holds something; who works in it is named, and not told to be resumed.

    Raises:
        UserError: naming the folder.
    """
    with usable(run_dir):  # a name may be too long
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"{run_dir} is a file; name a new folder for this run")
        if not run_dir.exists() or all(path.name == LOCK for path in run_dir.iterdir()):
            return
        if holder := holder_of(run_dir):
            raise UserError(f"{holder} works in {run_dir}, and runs never share a directory; give another --out")
    raise UserError(
        f"{run_dir} is not empty, and runs never share a directory; "
        f"give another --out, or go on with `unigrpo resume {run_dir}`"
    )


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


def _note(descriptor: int, path: Path) -> None:
    """Write into the locked file which process it is; a disk that does not take that much leaves no file."""
    number = str(os.getpid()).encode()
    try:
        with writing(path, len(number)):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, number)
    except StorageError:
        path.unlink(missing_ok=True)
        raise


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
