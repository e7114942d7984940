"""What a run tells whoever follows it, and the list that tells all of them.

A tracker is a file of this folder, named in a recipe: ``tracking: {use: [jsonl, {use: wandb, project: x}]}``. Its
constructor takes the recipe's parameters and does no work.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unigrpo.data.jsonl import as_text
from unigrpo.errors import UserError
from unigrpo.files import write_atomically
from unigrpo.plugin import Chosen, make
from unigrpo.reward_table import RewardTable
from unigrpo.runs.alarms import alarms_of
from unigrpo.runs.nan_statistics import number_or_none
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe
from unigrpo.types import Rollout

_LOGGER = logging.getLogger(__name__)
_SECRET = re.compile(r"(^|_)(key|token|secret|password)$", re.IGNORECASE)
HIDDEN = "***"
NUM_LOGGED = 64
"""Samples of a table that leave the run directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Completions of a step or of an evaluation, with their rewards."""

    name: str
    """``rollouts`` of a training step, or the evaluation: ``eval_before``, ``eval_step_000010``."""
    step: int
    """Learner steps done."""
    rows: Sequence[tuple[Rollout, RewardTable, int]]
    """Each rollout with the table and the row that hold its rewards."""

    def table(self, as_picture: Callable[[Any], Any]) -> tuple[list[str], list[list[Any]]]:
        """Return the columns and at most ``NUM_LOGGED`` rows of a table.

        ``as_picture`` makes a cell of a picture, an array [H, W, 3] of uint8.
        """
        names = list(dict.fromkeys(name for _, table, _ in self.rows for name in table.names))
        columns = ["task", "prompt", "prompt_picture", "completion", "picture", "answer", "reward", *names]
        found = []
        for rollout, table, row in self.rows[:NUM_LOGGED]:
            prompt, rewards = rollout.prompt, table.values_of(row)
            asked = as_picture(np.asarray(prompt.images[0])) if prompt.images else None
            made = None if rollout.image is None else as_picture(rollout.image)
            answer = None if prompt.answer is None else as_text(prompt.answer)
            total = number_or_none(float(table.unit_total[row]))
            shown = [prompt.task, prompt.text, asked, rollout.text, made, answer, total]
            found.append([*shown, *(rewards.get(name) for name in names)])
        return columns, found


class Tracker:
    """Hears of a run; it may show or keep what it hears, it may not change the run. Every method may stay empty.

    ``phase``, ``progress`` and ``close`` may come before ``start``; ``close`` may come twice.
    """

    failures: tuple[type[Exception], ...] = ()
    """Errors of this tracker alone: the run goes on without it, with one warning. Any other error ends the run."""

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Hear that steps follow.

        Args:
            recipe: of the run.
            run_dir: an existing run directory.
            resumed_step: of the checkpoint that the run goes on from, 0 at its start; what was heard of later steps no
                longer counts, they come again.

        Raises:
            UserError: if a package is missing.
        """

    def phase(self, text: str) -> None:
        """Hear what the run does, or waits for, from now on: "loading the policy"."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Hear that `done` of `total` pieces of the phase are finished; `text` names the pieces."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Hear the metrics of one learner step; ``step`` is among them."""

    def samples(self, samples: Samples) -> None:
        """Hear completions, pictures and rewards of a step or an evaluation."""

    def alarm(self, step: int, name: str) -> None:
        """Hear that an alarm (`unigrpo.runs.alarms`) is set that was not set at the step before."""

    def done(self, summary: Mapping[str, Any]) -> None:
        """Hear the summary of the run, when summary.json is written."""

    def close(self) -> None:
        """Write what is pending; the run is over, or has failed."""


class ServiceTracker(Tracker):
    """A tracker that logs to a package of its own kind: its run takes numbers, tables and pictures (wandb, trackio)."""

    needed: ClassVar[str]
    """The package's name, which is the name of the extra, too."""
    package: Any
    """The module, set when the run starts."""
    table_options: ClassVar[Mapping[str, Any]] = {}
    _run: Any = None

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Log the finite numbers of a step."""
        self._run.log(finite_numbers(metrics), step=int(metrics["step"]))

    def samples(self, samples: Samples) -> None:
        """Log a table; a picture is a cell of it."""
        columns, cells = samples.table(self.package.Image)
        table = self.package.Table(columns=columns, data=cells, **self.table_options)
        self._run.log({f"samples/{samples.name}": table}, step=samples.step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class Trackers(Tracker):
    """Tells every tracker of a run, in the recipe's order: ``jsonl`` comes first, so what is shown is on disk."""

    def __init__(self, choices: Iterable[Chosen], given: Tracker | None = None) -> None:
        """Make the trackers of a recipe.

        Args:
            choices: the recipe's ``tracking.use``.
            given: the caller's own, told last; it takes the place of one of its class in the recipe.

        Raises:
            UserError: if a choice is no tracker.
        """
        given = given or Tracker()
        made = [make(chosen) for chosen in choices]
        for tracker in made:
            if not isinstance(tracker, Tracker):
                way_out = "derive it from unigrpo.runs.trackers.base.Tracker"
                raise UserError(f"tracking.use: {type(tracker).__name__} is no tracker; {way_out}")
        self._trackers: list[Tracker] = [*(one for one in made if type(one) is not type(given)), given]
        self._alarms: set[str] = set()

    def start(self, recipe: Recipe | SftRecipe, run_dir: Path, resumed_step: int) -> None:
        """Start all."""
        self._tell("start", recipe, run_dir, resumed_step)

    def phase(self, text: str) -> None:
        """Tell the phase."""
        self._tell("phase", text)

    def progress(self, done: int, total: int, text: str) -> None:
        """Tell the pieces."""
        self._tell("progress", done, total, text)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Tell the metrics, then the alarms that they newly set."""
        self._tell("step", metrics)
        alarms = set(alarms_of(metrics))
        for name in sorted(alarms - self._alarms):
            self.alarm(int(metrics["step"]), name)
        self._alarms = alarms

    def samples(self, samples: Samples) -> None:
        """Tell the samples."""
        self._tell("samples", samples)

    def alarm(self, step: int, name: str) -> None:
        """Tell the alarm."""
        self._tell("alarm", step, name)

    def done(self, summary: Mapping[str, Any]) -> None:
        """Tell the summary."""
        self._tell("done", summary)

    def close(self) -> None:
        """Close all, also when one of them fails."""
        with ExitStack() as stack:
            for tracker in reversed(self._trackers):
                stack.callback(self._tell_one, tracker, "close")

    def _tell(self, method: str, *heard: Any) -> None:
        for tracker in list(self._trackers):
            self._tell_one(tracker, method, *heard)

    def _tell_one(self, tracker: Tracker, method: str, *heard: Any) -> None:
        try:
            getattr(tracker, method)(*heard)
        except tracker.failures as error:
            self._trackers.remove(tracker)
            said = f"{type(error).__name__}: {_without_secrets(str(error))}"
            _LOGGER.warning("%s failed (%s); the run goes on without it", type(tracker).__name__, said)


def public_config(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """Return a recipe as JSON values, with what its name or the environment calls a key, token or password hidden."""

    def public(value: Any, name: str = "") -> Any:
        if isinstance(value, Mapping):
            return {str(key): public(part, str(key)) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [public(part) for part in value]
        if isinstance(value, str):
            return HIDDEN if _SECRET.search(name) else _without_secrets(value)
        return value

    return public(recipe.model_dump(mode="json"))


def _without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, HIDDEN)
    return text


def finite_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what can stand on a curve: the finite numbers of a step's metrics, the step itself left out."""
    numbers = {name: number_or_none(value) for name, value in metrics.items() if name != "step"}
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def imported(package: str) -> Any:
    """Return a package that is an extra of ours.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracking.use names {package}, which is not installed ({error}); "
            f"run pip install 'unigrpo[{package}]', or leave it out of tracking.use"
        ) from error


def lasting_id(file: Path) -> str:
    """Return the name under which a run is known outside: made at its start, kept in a file for when it is resumed."""
    if not file.exists():
        write_atomically(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")
