"""The metric log of a run, one JSON object a step, and the clock that times a step's parts."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigrpo.data.jsonl import read_objects
from unigrpo.errors import UserError
from unigrpo.files import write_atomically

FILE_NAME = "metrics.jsonl"


class MetricLog:
    """Appends to ``metrics.jsonl``; a record is on disk when `append` returns.

    Opening it mends a last line that a killed process left half-written. A number that is not finite is written as
    null, because JSON has no word for it.
    """

    def __init__(self, run_dir: Path, *, resumed_step: int | None = None) -> None:
        """Open the log of a run.

        Args:
            run_dir: an existing run directory.
            resumed_step: keep only the records up to this step (the checkpoint's); None keeps all whole records.
        """
        self.path = run_dir / FILE_NAME
        if self.path.exists():
            records = read_metrics(run_dir)
            kept = [record for record in records if resumed_step is None or record["step"] <= resumed_step]
            write_atomically(self.path, "".join(map(_line, kept)))
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Write one step's metrics through to the disk.

        Args:
            metrics: names as in the run directory's description; ``step`` is required.

        Raises:
            ValueError: if there is no ``step``.
        """
        if "step" not in metrics:
            raise ValueError(f"metrics without a step: {', '.join(metrics)}")
        self._file.write(_line(metrics))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the log takes no more records."""
        self._file.close()

    def __enter__(self) -> MetricLog:
        """Return the log itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run in order; a half-written last line is left out.

    Raises:
        UserError: if an earlier line is not a record, naming it.
    """
    path = run_dir / FILE_NAME
    if not path.is_file():
        return []
    records = []
    try:
        for number, record in read_objects(path, may_end_torn=True):
            if "step" not in record:
                raise UserError(f"{path}:{number}: no record of a step")
            records.append(record)
    except UserError as error:
        raise UserError(f"{error}; remove that line to go on") from error
    return records


class StepTimer:
    """Seconds of each part of a step, by name; a part entered twice adds up."""

    def __init__(self) -> None:
        """Start the clock of the whole step."""
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part: ``with timer.part("rollout"): …``, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Return ``timing_s/<part>`` for each part, and ``timing_s/step`` since the timer was made."""
        parts = {f"timing_s/{name}": seconds for name, seconds in self._seconds.items()}
        return {**parts, "timing_s/step": time.perf_counter() - self._start}


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in metrics.items()}, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: numpy and torch scalars become numbers, what is not finite becomes None."""
    item = getattr(value, "item", None)
    if callable(item):
        value = item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
