"""Curves for TensorBoard, beside metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class TensorBoard:
    """Writes scalars under ``<run_dir>/tensorboard``."""

    def __init__(self, run_dir: Path, *, resumed_step: int | None = None) -> None:
        """Open the event file; imports torch's writer.

        Args:
            run_dir: an existing run directory.
            resumed_step: events after this step, written before the run stopped, are hidden by TensorBoard.
        """
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(run_dir / FOLDER), purge_step=purge_step)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Write every finite number of a step's metrics under its own name.

        Args:
            metrics: as in metrics.jsonl; ``step`` is the place on the axis.
        """
        step = int(metrics["step"])
        for name, value in metrics.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._writer.close()
