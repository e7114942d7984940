"""``metrics.jsonl`` and the samples of a run, which resuming and the report read."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from unigrpo.files import json_text, write_atomically, writing
from unigrpo.runs.metrics import FILE_NAME, read_metrics
from unigrpo.runs.samples import write_samples
from unigrpo.runs.trackers.base import Samples, Tracker
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

logger = logging.getLogger(__name__)


class JsonLines(Tracker):
    """Appends a JSON object a step; a record is on disk when `step` returns.

    A number that is not finite is written as null, because JSON has no word for it. Samples of step n are
    ``rollouts/step_n.jsonl``, those of an evaluation ``eval_NAME/samples.jsonl``, each with PNG files beside it.
    """

    def __init__(self) -> None:
        """Take no parameters."""
        self._run_dir = Path()
        self._file: IO[str] | None = None
        self._keeps_samples = True

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Open the log; later records than the resumed step, and a last line that is half-written, go."""
        self._run_dir, path = run_dir, run_dir / FILE_NAME
        if path.exists():
            kept = [record for record in read_metrics(run_dir) if record["step"] <= resumed_step]
            write_atomically(path, "".join(map(_line, kept)))
        with writing(path):
            self._file = path.open("a", encoding="utf-8")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Write one step's metrics through to the disk.

        Raises:
            ValueError: if there is no ``step``.
            StorageError: if the disk does not take the record; the run goes on from its last checkpoint then.
        """
        if "step" not in metrics:
            raise ValueError(f"metrics without a step: {', '.join(metrics)}")
        assert self._file is not None, "start comes before the steps"
        line = _line(metrics)
        with writing(self._run_dir / FILE_NAME, len(line)):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def samples(self, samples: Samples) -> None:
        """Write the samples and their pictures; a disk that does not take them costs the samples, not the run."""
        place = f"step_{samples.step:06d}" if samples.name == "rollouts" else "samples"
        if self._keeps_samples:
            try:
                write_samples(self._run_dir / samples.name / f"{place}.jsonl", samples.rows)
            except OSError as error:
                self._keeps_samples = False
                logger.warning("samples were not written (%s); the run goes on without them", error)

    def close(self) -> None:
        """Close the file; what it has not taken by now was said where it was written."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def _line(metrics: Mapping[str, Any]) -> str:
    return json_text(metrics) + "\n"
