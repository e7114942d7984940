"""Ray, started once where no cluster is connected; what keeps it from starting or answering is one message."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from unigrpo.errors import UserError

T = TypeVar("T")

WAYS_OUT = (
    "free memory and room under /tmp (RAY_TMPDIR is another, short path), end what an earlier run left with "
    "`ray stop`, unset RAY_ADDRESS or give that of a cluster that runs; rollouts.num_actors: 0 "
    "and placement: local do without Ray"
)
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch, read at its import: at 0 a cluster is of this machine alone, and every process of it, the pages of
metrics included, listens on the loopback interface. At 1, Linux's default, `127.0.0.1` is replaced by the address that
others reach."""
SHUTDOWN_S = 30.0
"""For Ray to end its processes."""


class RayStalledError(UserError):
    """Ray itself does not answer: its node or its control service hangs or is stopped."""


def _explain(kind: object, error: BaseException | None, trace: object) -> None:
    """Turn any error of Ray's start, many of which are a plain Exception, into a message."""
    if isinstance(error, Exception):
        said = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"Ray did not start ({type(error).__name__}: {said}); {WAYS_OUT}") from error


def _keep_handler(number: int) -> Callable[[], object]:
    """Return what puts a signal's handler back: Ray's own ends the program without a word and without closing."""
    handler = signal.getsignal(number)
    if handler is None or threading.current_thread() is not threading.main_thread():
        return lambda: None
    return lambda: signal.signal(number, handler)


def start_ray() -> None:
    """Start Ray on the loopback interface, or connect to the cluster of RAY_ADDRESS; nothing where it is connected.

    Raises:
        UserError: if it does not start.
    """
    if "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault(LOOPBACK_ONLY, "0")
    import ray

    if not ray.is_initialized():
        with ExitStack() as stack:
            stack.callback(_keep_handler(signal.SIGTERM))
            stack.push(_explain)
            ray.init(
                include_dashboard=False, log_to_driver=False, configure_logging=False, _node_ip_address="127.0.0.1"
            )


def lost_errors() -> tuple[type[Exception], ...]:
    """Return the errors that mean that an actor is gone, with what it held: it died, or its node, or memory ran out.

    Ray's memory monitor ends an actor with an error that is no ``RayActorError``.
    """
    from ray import exceptions as found

    lost = (found.RayActorError, found.OutOfMemoryError, found.WorkerCrashedError, found.NodeDiedError)
    return (*lost, found.ObjectLostError)


def within(deadline_s: float, what: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Return what a call into Ray returns.

    Ray has no limit of its own for most calls: they wait for its processes, however long these are stopped.

    Args:
        deadline_s: of the call.
        what: Ray was to do, for the message.
        call: of Ray.
        arguments: of the call.
        options: of the call.

    Raises:
        RayStalledError: if it does not return in time. From then on this process leaves without waiting for Ray.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def keep(kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None:
            outcome.append((None, error))  # and raised where the call was made
        return True

    def run() -> None:
        with ExitStack() as stack:
            stack.push(keep)
            outcome.append((call(*arguments, **options), None))

    thread = threading.Thread(target=run, name="ray-call", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if not outcome:
        atexit.register(_leave)
        raise RayStalledError(
            f"Ray did not {what} in {deadline_s:g} s: its raylet or gcs_server hangs or is stopped (`ps` shows state T "
            "or D). End its processes with `ray stop --force`, and go on with `unigrpo resume`"
        )
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _leave() -> None:
    """End this process at once: Ray's own exit would wait for the processes that do not answer, which end with us."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)
