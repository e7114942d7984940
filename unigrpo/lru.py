"""A memory of a fixed number of values."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """The values last put, up to a number of them; threads may share it."""

    def __init__(self, max_entries: int) -> None:
        """Start empty."""
        self._values: dict[K, V] = {}
        self._max_entries = max_entries
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of values held."""
        return len(self._values)

    def get(self, keys: Iterable[K]) -> dict[K, V]:
        """Return what is known of the keys. Looking changes nothing: only :meth:`put` makes a value recent."""
        with self._lock:
            return {key: self._values[key] for key in keys if key in self._values}

    def put(self, values: Mapping[K, V]) -> None:
        """Keep values, the last as the most recent, and let go of the oldest beyond the limit."""
        with self._lock:
            for key, value in values.items():
                self._values.pop(key, None)
                self._values[key] = value
            while len(self._values) > self._max_entries:
                del self._values[next(iter(self._values))]
