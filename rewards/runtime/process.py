"""A worker process as its parent sees it: started, loaded, called in turns, and replaced when it was killed or died."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.errors import UserError
from unigrpo.rewards.process.child import Child, ChildDiedError, ChildTimeoutError
from unigrpo.settings.rewards import RewardSettings

if TYPE_CHECKING:
    from unigrpo.rewards.process.remote_child import RemoteChild

_PAUSE_GRACE_S = 60.0
"""Time beyond the limit that a pause names: whoever made it ends it."""


class RewardLoadError(UserError):
    """A reward could not be made: its name, and why."""


class RewardPoolClosedError(RuntimeError):
    """The pool was closed while it scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What a reward says of itself once it is made."""

    range: tuple[float, float]
    wanted_columns: frozenset[str] | None
    """None is every data column."""
    wants_completion_ids: bool
    needs_whole_groups: bool
    """Whether a call must hold whole groups, because an item's value depends on the others of its group."""
    is_repeatable: bool
    """Whether an item's value depends on its inputs alone, so that equal items need be scored once."""
    identity: str
    """Its version, weights and source: what, with the arguments, a kept value belongs to."""

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Traits:
        """Return them from a worker's answer to its order."""
        wanted = reply["wanted_columns"]
        own = {"range": tuple(reply["range"]), "wanted_columns": None if wanted is None else frozenset(wanted)}
        return cls(**{**reply, **own})


@dataclass(kw_only=True)
class RewardProcess:
    """One worker process, which holds one reward or several that share it; callers of several threads take turns."""

    settings: RewardSettings
    """Settings of its first reward: where it runs, and under which interpreter."""
    folder: Path | None = None
    """Where relative paths start, of ``use:`` and of code that arguments name; None is the working directory."""
    start_timeout_s: float = 600.0
    """Time to make a reward, its downloads included."""
    num_restarts: int = 0
    traits: dict[str, Traits] = field(default_factory=dict)
    """Traits by reward, once loaded."""
    _orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    _child: Child | RemoteChild | None = None
    _num_loaded: int = 0
    _is_closed: bool = False
    _failure: RewardLoadError | None = None
    """Why it could not be made; it is not tried again until the pool has been closed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the child is made or ended, so that closing need not wait for a call."""
    _turn: threading.RLock = field(default_factory=threading.RLock)
    """Held by the caller that speaks with the child."""

    def add(self, name: str, settings: RewardSettings) -> None:
        """Have the process make one more reward; before it is started."""
        self._orders[name] = {
            "name": name,
            "use": settings.use,
            "arguments": settings.arguments,
            "folder": str(self.folder) if self.folder else None,
            "memory_limit_gb": settings.memory_limit_gb,
        }

    def open(self) -> None:
        """Start the process, also after :meth:`close`."""
        if self._failure is None:
            self._is_closed = False
            self.start()

    def start(self) -> None:
        """Start the process and hand it its orders; it loads while the caller goes on.

        Raises:
            RewardPoolClosedError: if the pool was closed meanwhile.
            RewardLoadError: if it could not be made before.
        """
        with self._turn:
            if self._child is not None and self._child.is_alive:
                return
            with self._lock:
                if self._failure is not None:
                    raise self._failure
                if self._is_closed:
                    raise RewardPoolClosedError(f"reward {next(iter(self._orders))!r} was closed while it scored")
                self.num_restarts += self._child is not None
                self._num_loaded = 0
                self._child = _start_child(self.settings, self.folder)
            for order in self._orders.values():
                self._child.send({"load": order})

    def wait_until_loaded(self) -> None:
        """Wait for all its rewards to be made.

        Raises:
            RewardLoadError: if one could not be.
        """
        with self._turn:
            self.start()
            for name in list(self._orders)[self._num_loaded :]:
                self._load(name)

    def _load(self, name: str) -> None:
        assert self._child is not None
        use = self._orders[name]["use"]
        try:
            reply = self._child.receive(timeout_s=self.start_timeout_s)
            while "progress" in reply:  # Of an environment that is being built: the time counts from each sign of life.
                reply = self._child.receive(timeout_s=self.start_timeout_s)
        except (ChildDiedError, ChildTimeoutError) as error:
            raise self._given_up(RewardLoadError(f"reward {name!r} ({use}) did not start: {error}")) from error
        if "error" in reply:
            failure = RewardLoadError(f"reward {name!r} ({use}) could not be made: {reply['error']}")
            failure.add_note(reply["traceback"])  # Shown with a traceback, not in the message.
            raise self._given_up(failure)
        self.traits[name] = Traits.of(reply)
        self._num_loaded += 1

    def exchange(self, message: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return the answer to a message.

        The time counts from this caller's turn, after a new process has loaded, and without the pauses that a reward
        reports (:mod:`unigrpo.rewards.process.pauses`).

        Raises:
            ChildTimeoutError, ChildDiedError: as a child does.
        """
        with self._turn:
            self.wait_until_loaded()
            assert self._child is not None
            self._child.send({**message, "deadline_s": timeout_s, "takes_pauses": True})
            return self._answer(self._child, timeout_s)

    def _answer(self, child: Child | RemoteChild, timeout_s: float) -> dict[str, Any]:
        remaining_s = timeout_s
        while True:
            start_s = time.monotonic()
            reply = child.receive(timeout_s=remaining_s)
            if "pause_s" not in reply:
                return reply
            remaining_s = max(0.1, remaining_s - (time.monotonic() - start_s))
            try:
                child.receive(timeout_s=reply["pause_s"] + _PAUSE_GRACE_S)
            except ChildTimeoutError as error:  # What the reward waited for is to blame, or the machine; no answer is.
                raise ChildDiedError(f"a pause of {reply['pause_s']:g} s did not end: {error}") from error

    def _given_up(self, failure: RewardLoadError) -> RewardLoadError:
        """End the process and return why; every later start says the same."""
        self._end(failure)
        return failure

    def close(self) -> None:
        """End the process, and let no retry start another."""
        self._end(None)

    def _end(self, failure: RewardLoadError | None) -> None:
        with self._lock:
            if failure is None or not self._is_closed:
                self._failure = failure
            self._is_closed = True
            if self._child is not None:
                self._child.kill()


def _start_child(settings: RewardSettings, folder: Path | None) -> Child | RemoteChild:
    """Return a new child where the recipe places the reward, under the interpreter that it names."""
    module, arguments = "unigrpo.rewards.process.worker", list[str]()
    if settings.env is not None:
        module, arguments = "unigrpo.rewards.process.env_worker", [settings.env.model_dump_json(), str(folder or "")]
    if settings.placement == "ray":
        from unigrpo.rewards.process.remote_child import RemoteChild  # Ray, for those who use it.

        return RemoteChild(module, num_gpus=settings.num_gpus, num_cpus=settings.num_cpus, arguments=arguments)
    return Child(module, arguments=arguments)
