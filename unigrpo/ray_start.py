"""Ray, started once where no cluster is connected; what keeps it from starting is one message."""

from __future__ import annotations

from types import TracebackType

from unigrpo.errors import UserError

WAYS_OUT = (
    "free memory and room under /tmp (RAY_TMPDIR is another, short path), end what an earlier run left with "
    "`ray stop`, unset RAY_ADDRESS or give that of a cluster that runs; rollouts.num_actors: 0 "
    "and placement: local do without Ray"
)


class _StartUp:
    """Turns whatever Ray raises, of which much is a plain Exception, into a message."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            said = next(iter(str(error).strip().splitlines()), "")
            raise UserError(f"Ray did not start ({type(error).__name__}: {said}); {WAYS_OUT}") from error


def start_ray() -> None:
    """Start Ray on the loopback interface, or connect to the cluster of RAY_ADDRESS; nothing where it is connected.

    Raises:
        UserError: if it does not start.
    """
    import ray

    if not ray.is_initialized():
        with _StartUp():
            ray.init(
                include_dashboard=False, log_to_driver=False, configure_logging=False, _node_ip_address="127.0.0.1"
            )
