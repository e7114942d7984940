"""The metrics of a run as they lie on disk, one JSON object a step, and the clock that times a step's parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigrpo.data.jsonl import read_objects
from unigrpo.errors import UserError
from unigrpo.runs.records import MetricsRecord, record_of

FILE_NAME = "metrics.jsonl"


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
            record_of(MetricsRecord, record, f"{path}:{number}")
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
