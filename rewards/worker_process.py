"""One reward's worker process as its parent sees it: started, loaded, called, and replaced when it was killed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigrpo.rewards.child import Child, ChildDiedError, ChildTimeoutError
from unigrpo.rewards.isolation import Reply, outcomes_of
from unigrpo.settings import RewardSettings


class RewardLoadError(RuntimeError):
    """A reward could not be made: its name, and why."""


class RewardPoolClosedError(RuntimeError):
    """The pool was closed while it scored."""


@dataclass(kw_only=True)
class RewardWorker:
    """One worker process of one reward; replaced when it is killed or dies."""

    name: str
    settings: RewardSettings
    folder: Path | None
    start_timeout_s: float
    num_restarts: int = 0
    range: tuple[float, float] = (0.0, 1.0)
    wanted_columns: frozenset[str] | None = None
    wants_completion_ids: bool = False
    _child: Child | None = None
    _is_loaded: bool = False
    _is_closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Start the process, also after :meth:`close`."""
        self._is_closed = False
        self.start()

    def start(self) -> None:
        """Start the process and hand it its order; it loads while the caller goes on.

        Raises:
            RewardPoolClosedError: if the pool was closed meanwhile.
        """
        if self._child is not None and self._child.is_alive:
            return
        with self._lock:
            if self._is_closed:
                raise RewardPoolClosedError(f"reward {self.name!r} was closed while it scored")
            self.num_restarts += self._child is not None
            self._is_loaded = False
            self._child = Child("unigrpo.rewards.worker")
        order = {"use": self.settings.use, "arguments": self.settings.arguments, "name": self.name}
        self._child.send({"load": order | {"folder": str(self.folder) if self.folder else None}})

    def wait_until_loaded(self) -> None:
        """Wait for the reward to be made.

        Raises:
            RewardLoadError: if it could not be.
        """
        self.start()
        if self._is_loaded:
            return
        assert self._child is not None
        try:
            reply = self._child.receive(timeout_s=self.start_timeout_s)
        except (ChildDiedError, ChildTimeoutError) as error:
            raise RewardLoadError(f"reward {self.name!r} ({self.settings.use}) did not start: {error}") from error
        if "error" in reply:
            self.close()
            raise RewardLoadError(
                f"reward {self.name!r} ({self.settings.use}) could not be made: {reply['error']}\n{reply['traceback']}"
            )
        self.range = (float(reply["range"][0]), float(reply["range"][1]))
        wanted = reply["wanted_columns"]
        self.wanted_columns = None if wanted is None else frozenset(wanted)
        self.wants_completion_ids = reply["wants_completion_ids"]
        self._is_loaded = True

    def call(self, columns: Mapping[str, Any], step: int) -> Reply:
        """Return the outcomes of one batch, or raise as :mod:`unigrpo.rewards.isolation` says."""
        self.wait_until_loaded()
        assert self._child is not None
        self._child.send({"columns": columns, "step": step, "deadline_s": self.settings.timeout_s})
        return outcomes_of(self._child.receive(timeout_s=self.settings.timeout_s))

    def close(self) -> None:
        """End the process, and let no retry start another."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                self._child.kill()
