"""Weights & Biases (``pip install 'unigrpo[wandb]'``): metrics, recipe, samples, alarms and summary; never weights.

The account is wandb's own affair (``wandb login``, WANDB_API_KEY, WANDB_MODE=offline); no key passes through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.runs.trackers.base import Samples, Tracker, finite_numbers, imported, lasting_id, public_config

if TYPE_CHECKING:
    from unigrpo.settings import Recipe, SftRecipe


class WeightsAndBiases(Tracker):
    """Logs a run to wandb; a resumed run goes on under its id, and steps that come again are not logged twice."""

    def __init__(
        self,
        project: str = "unigrpo",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """Take where the run belongs.

        Args:
            project: of wandb.
            entity: user or team; null is the account's own.
            name: of the run; null is the recipe's, with the seed.
            group: of runs that belong together.
            tags: of the run.
        """
        self._place: dict[str, Any] = {"project": project, "entity": entity, "group": group, "tags": tags}
        self._name = name
        self._run: Any = None

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Open the run; wandb's files lie in the run directory."""
        self._wandb = imported("wandb")
        self.failures = (self._wandb.Error, OSError)
        self._run = self._wandb.init(
            **self._place,
            name=self._name or f"{recipe.name}-{recipe.seed}",
            id=lasting_id(run_dir / "wandb.id"),
            resume="allow",
            dir=str(run_dir),
            config=public_config(recipe),
            settings=self._wandb.Settings(console="off", save_code=False, silent=True),
        )

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Log the finite numbers of a step."""
        self._run.log(finite_numbers(metrics), step=int(metrics["step"]))

    def samples(self, samples: Samples) -> None:
        """Log a table; a picture is a cell of it."""
        columns, cells = samples.table(self._wandb.Image)
        table = self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        self._run.log({f"samples/{samples.name}": table}, step=samples.step)

    def alarm(self, step: int, name: str) -> None:
        """Send an alert."""
        self._run.alert(title=f"alarm/{name}", text=f"set at step {step}", level=self._wandb.AlertLevel.WARN)

    def done(self, summary: Mapping[str, Any]) -> None:
        """Put the summary into the run's."""
        self._run.summary.update(dict(summary))

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
