"""Trackio (``pip install 'unigrpo[trackio]'``): metrics, recipe, samples, alarms and summary; never weights.

Without a space everything stays in trackio's local folder (TRACKIO_DIR), and no server is started.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.runs.trackers.base import ServiceTracker, finite_numbers, imported, lasting_id, public_config
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe


class Trackio(ServiceTracker):
    """Logs a run to trackio; a resumed run goes on under its name."""

    needed = "trackio"

    def __init__(self, project: str = "unigrpo", name: str | None = None, space_id: str | None = None) -> None:
        """Take where the run belongs.

        Args:
            project: of trackio.
            name: of the run; null is the recipe's, with the seed and an id of the run directory.
            space_id: a Hugging Face Space to log to; null is this machine alone.
        """
        self._project, self._name, self._space_id = project, name, space_id

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Open the run; steps that come again after a resumption are logged again, with the same numbers."""
        self.package = imported(self.needed)
        from trackio.exceptions import TrackioAPIError

        self.failures = (TrackioAPIError, self.package.LocalTokenNotFoundError, sqlite3.Error, OSError)
        self._run = self.package.init(
            project=self._project,
            name=self._name or f"{recipe.name}-{recipe.seed}-{lasting_id(run_dir / 'trackio.id')}",
            space_id=self._space_id,
            config=public_config(recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def alarm(self, step: int, name: str) -> None:
        """Send an alert."""
        self._run.alert(title=f"alarm/{name}", text=f"set at step {step}")

    def done(self, summary: Mapping[str, Any]) -> None:
        """Log the numbers of the summary, and those of its evaluations, at the last step."""
        numbers = finite_numbers(summary)
        for part in ("eval_before", "eval_after"):
            numbers |= {f"{part}/{name}": value for name, value in finite_numbers(summary.get(part) or {}).items()}
        self._run.log({f"summary/{name}": value for name, value in numbers.items()}, step=int(summary["num_steps"]))
