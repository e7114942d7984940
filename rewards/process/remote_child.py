"""A worker process on a node of a Ray cluster, under the same hand as one on this machine.

A Ray actor on the node owns the same killable child and passes messages on as bytes: the JSON and blobs of
:mod:`unigrpo.rewards.process.wire`, so no object of a user is pickled. A hang ends the child by the same deadline; the
death of the child, of the actor or of the node is the same ``ChildDiedError``, after which the caller starts another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unigrpo.ray_start import RayStalledError, lost_errors, start_ray, within
from unigrpo.rewards.process import wire
from unigrpo.rewards.process.child import Child, ChildDiedError, ChildTimeoutError

_GRACE_S = 30.0
"""Seconds for a message to travel, beyond the deadline that the node keeps itself."""
_DIED, _TIMED_OUT = "died", "timed out"


class ChildHost:
    """What the actor holds. Its answers are (kind of failure, what was said, frame), because an actor wraps errors."""

    def __init__(self, module: str, num_threads: int, arguments: Sequence[str]) -> None:
        """Start the child."""
        self._child = Child(module, num_threads=num_threads, arguments=arguments)

    def send(self, frame: bytes, timeout_s: float) -> tuple[str, str, bytes]:
        """Pass a frame on."""
        return self._answer(lambda: self._child.send_frame(frame, timeout_s=timeout_s))

    def receive(self, timeout_s: float) -> tuple[str, str, bytes]:
        """Return the child's next frame."""
        return self._answer(lambda: self._child.receive_frame(timeout_s=timeout_s))

    def _answer(self, ask: Callable[[], bytes | None]) -> tuple[str, str, bytes]:
        try:
            return "", "", ask() or b""
        except ChildDiedError as error:
            return _DIED, str(error), b""
        except ChildTimeoutError as error:
            return _TIMED_OUT, str(error), b""

    def process_ids(self) -> tuple[int, int]:
        """Return the ids of the actor's process and of the child's."""
        import os

        return os.getpid(), self._child.pid


class RemoteChild:
    """A child whose process runs where Ray puts it. Not thread-safe: callers take turns."""

    def __init__(
        self,
        module: str,
        *,
        num_gpus: float = 0.0,
        num_cpus: float = 1.0,
        arguments: Sequence[str] = (),
        start_timeout_s: float = 600.0,
    ) -> None:
        """Ask Ray for a place and start the child there; returns at once.

        Args:
            module: what runs, as for :class:`Child`; the node needs this package and what the module imports.
            num_gpus: of the place; the child sees these and no others.
            num_cpus: of the place, and the child's threads.
            arguments: as for :class:`Child`.
            start_timeout_s: for Ray to find the place.
        """
        import ray

        self._ray = ray
        start_ray()
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0)(ChildHost)
        self._actor: Any = remote.remote(module, max(1, int(num_cpus)), list(arguments))
        self._is_placed = False
        self._start_timeout_s = start_timeout_s
        self._sent: list[Any] = []
        """Answers that nobody has read yet: sending must not wait for a place on the cluster."""

    @property
    def is_alive(self) -> bool:
        """Return whether it is not known to be dead."""
        return self._actor is not None

    def process_ids(self) -> tuple[int, int]:
        """Return the ids, on their node, of the actor's process and of the child's."""
        return self._get(self._actor.process_ids.remote(), 0.0)

    def send(self, message: Mapping[str, Any], *, timeout_s: float = 60.0) -> None:
        """Send a message; that the child is gone shows when its answer is read."""
        if self._actor is None:
            raise ChildDiedError("the process was ended")
        frame = wire.encode(message)
        try:
            reference = within(timeout_s + _GRACE_S, "send a message", self._actor.send.remote, frame, timeout_s)
        except RayStalledError as error:
            raise ChildDiedError(str(error)) from error
        self._sent.append((reference, timeout_s))

    def receive(self, *, timeout_s: float) -> dict[str, Any]:
        """Return the next message of the child, which is killed if there is none in time.

        Raises:
            ChildDiedError: if the child, its actor or its node has ended.
            ChildTimeoutError: after ``timeout_s`` seconds.
        """
        while self._sent:
            reference, send_timeout_s = self._sent.pop(0)
            self._frame(reference, send_timeout_s)
        if self._actor is None:
            raise ChildDiedError("the process was ended")
        return wire.decode(self._frame(self._actor.receive.remote(timeout_s), timeout_s))

    def kill(self) -> None:
        """End the actor, with it the child and all that it started; harmless when they are gone."""
        actor, self._actor = self._actor, None
        if actor is not None and self._ray.is_initialized():
            self._ray.kill(actor)

    def _get(self, reference: Any, timeout_s: float) -> Any:
        """Return what the actor answered, waiting for its place the first time."""
        deadline_s = timeout_s + _GRACE_S + (0.0 if self._is_placed else self._start_timeout_s)
        try:
            answer = self._ray.get(reference, timeout=deadline_s)
        except self._ray.exceptions.GetTimeoutError as error:
            self.kill()
            raise ChildDiedError(
                f"no answer from its node in {deadline_s:g} s, or no node of the cluster has room for it"
            ) from error
        except lost_errors() as error:
            self.kill()
            raise ChildDiedError(f"its actor ended: {str(error).splitlines()[0]}") from error
        self._is_placed = True
        return answer

    def _frame(self, reference: Any, timeout_s: float) -> bytes:
        """Return the frame that the actor answered with, or raise what its child met with."""
        kind, reason, frame = self._get(reference, timeout_s)
        if kind:
            self.kill()
            raise ChildDiedError(reason) if kind == _DIED else ChildTimeoutError(reason)
        return bytes(frame)
