"""Exceptions of a reward's code on the log: a traceback once for each kind, and then how often it came."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field

_LOGGER = logging.getLogger(__name__)
_PLACE = re.compile(r'^\s*File "[^"]+", line \d+', re.MULTILINE)


@dataclass(kw_only=True)
class _Kind:
    error: str
    """Of its first item: type and message."""
    traceback: str
    num_items: int = 0
    num_said: int = 0


@dataclass(kw_only=True)
class ErrorNotes:
    """The errors of one reward, by the type and the lines that they come from: their messages may name the item."""

    name: str
    _kinds: dict[tuple[str, ...], _Kind] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, error: str, traceback: str, num_items: int) -> None:
        """Count the items of one error, as ``Type: message``."""
        key = (error.partition(":")[0], *_PLACE.findall(traceback))
        with self._lock:
            self._kinds.setdefault(key, _Kind(error=error, traceback=traceback)).num_items += num_items

    def say(self, *, is_last: bool = False) -> None:
        """Log what is new: a kind with its traceback, then its number each time that it has doubled, and at the end."""
        with self._lock:
            for kind in self._kinds.values():
                if not kind.num_said:
                    _LOGGER.warning(
                        f"reward {self.name} failed on {kind.num_items} items: {kind.error}\n{kind.traceback}"
                    )
                elif kind.num_items >= 2 * kind.num_said or (is_last and kind.num_items > kind.num_said):
                    _LOGGER.warning(
                        f"reward {self.name} failed on {kind.num_items} items by now: {kind.error} (traceback above)"
                    )
                else:
                    continue
                kind.num_said = kind.num_items
