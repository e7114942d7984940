"""Weights & Biases (``pip install 'unigrpo[wandb]'``): metrics, recipe, samples, alarms and summary; never weights.

The account is wandb's own affair (``wandb login``, WANDB_API_KEY, WANDB_MODE=offline); no key passes through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from unigrpo.runs.trackers.base import ServiceTracker, imported, lasting_id, public_config
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe


class WeightsAndBiases(ServiceTracker):
    """Logs a run to wandb; a resumed run goes on under its id, and steps that come again are not logged twice."""

    needed = "wandb"
    table_options: ClassVar = {"allow_mixed_types": True}

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

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Open the run; wandb's files lie in the run directory."""
        self.package = imported(self.needed)
        self.failures = (self.package.Error, OSError)
        self._run = self.package.init(
            **self._place,
            name=self._name or f"{recipe.name}-{recipe.seed}",
            id=lasting_id(run_dir / "wandb.id"),
            resume="allow",
            dir=str(run_dir),
            config=public_config(recipe),
            settings=self.package.Settings(console="off", save_code=False, silent=True),
        )

    def alarm(self, step: int, name: str) -> None:
        """Send an alert."""
        self._run.alert(title=f"alarm/{name}", text=f"set at step {step}", level=self.package.AlertLevel.WARN)

    def done(self, summary: Mapping[str, Any]) -> None:
        """Put the summary into the run's."""
        self._run.summary.update(dict(summary))
