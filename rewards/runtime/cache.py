"""Values that need not be computed again: in memory for a run, in a SQLite file for several."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from unigrpo.errors import UserError

MAX_ENTRIES_IN_MEMORY = 32_768
"""About 5 MB; a quickstart run has fewer distinct items."""
_SECONDS_TO_WAIT = 30.0
_KEYS_A_QUERY = 500
_SCHEMA = "CREATE TABLE IF NOT EXISTS rewards (key BLOB PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID"


class RewardCacheError(UserError):
    """A cache file that cannot be read or written."""


class DiskCache:
    """A SQLite file that several runs may use at once."""

    def __init__(self, path: Path | str) -> None:
        """Open the file, or make it.

        Raises:
            RewardCacheError: if it is not one, or cannot be written.
        """
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_SECONDS_TO_WAIT, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")  # A lost value is only scored again.
            self._connection.execute(_SCHEMA)
            self._connection.commit()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def get(self, keys: Iterable[bytes]) -> dict[bytes, float]:
        """Return what is known of the keys.

        Raises:
            RewardCacheError: if the file cannot be read.
        """
        wanted, found = list(keys), list[tuple[bytes, float]]()
        with self._lock:
            try:
                for start in range(0, len(wanted), _KEYS_A_QUERY):
                    part = wanted[start : start + _KEYS_A_QUERY]
                    marks = ",".join("?" * len(part))
                    found += self._connection.execute(f"SELECT key, value FROM rewards WHERE key IN ({marks})", part)
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        return dict(found)

    def put(self, values: Mapping[bytes, float]) -> None:
        """Keep values, all or none.

        Raises:
            RewardCacheError: if the file cannot be written.
        """
        with self._lock:
            try:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO rewards VALUES (?, ?)", list(values.items()))
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _unusable(self, error: Exception) -> RewardCacheError:
        return RewardCacheError(
            f"cache_file {self.path}: {error}; give a file that can be written and is a cache, or delete it, or set "
            "cache: memory"
        )
