"""Ray, started once where no cluster is connected; what keeps it from starting is one message."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack

from unigrpo.errors import UserError

WAYS_OUT = (
    "free memory and room under /tmp (RAY_TMPDIR is another, short path), end what an earlier run left with "
    "`ray stop`, unset RAY_ADDRESS or give that of a cluster that runs; rollouts.num_actors: 0 "
    "and placement: local do without Ray"
)


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
    import ray

    if not ray.is_initialized():
        with ExitStack() as stack:
            stack.callback(_keep_handler(signal.SIGTERM))
            stack.push(_explain)
            ray.init(
                include_dashboard=False, log_to_driver=False, configure_logging=False, _node_ip_address="127.0.0.1"
            )
