"""Curves for TensorBoard, under ``<run_dir>/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.runs.trackers.base import Tracker, finite_numbers
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Writes every finite number of a step under its own name."""

    failures = (OSError,)

    def __init__(self) -> None:
        """Take no parameters."""
        self._writer: Any = None

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Open an event file; imports torch's writer. TensorBoard hides events after the resumed step."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / FOLDER), purge_step=resumed_step + 1)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Write the scalars."""
        for name, value in finite_numbers(metrics).items():
            self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        """Write what is pending and close the file."""
        if self._writer is not None:
            self._writer.close()
