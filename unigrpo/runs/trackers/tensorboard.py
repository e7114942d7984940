"""Curves for TensorBoard, under ``<run_dir>/tensorboard``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from unigrpo.runs.trackers.base import Tracker, finite_numbers
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Writes every finite number of a step under its own name."""

    failures = (OSError,)

    def __init__(self) -> None:
        """Take no parameters."""
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Open an event file. TensorBoard hides events after the resumed step.

        Events are written here and not by a thread, whose failure is a traceback on the terminal.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}.{time.monotonic_ns():020d}"
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(resumed_step + 1, file_version="brain.Event:2")
        self._write(resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Write the scalars."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in finite_numbers(metrics).items()]
        try:
            self._write(int(metrics["step"]), summary=Summary(value=values))
            self._writer.flush()
        except OSError:
            with suppress(OSError):
                self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
