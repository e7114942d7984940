"""Checkpoints that are whole or absent: written under a temporary name, synced, hashed, renamed.

A step's folder holds ``adapter/`` in PEFT layout (or ``model.safetensors`` without LoRA), ``optimizer.safetensors``,
``state.json`` and ``manifest.json`` with the sha256 of each. All randomness is a function of (seed, step), so the step
is the whole state of every generator.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.errors import StorageError
from unigrpo.files import sha256_of, sync, sync_tree, writing
from unigrpo.settings.runs import CheckpointSettings

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
WRITING = ".writing-"
"""Begins the name of one that is not whole yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified folder and the step after which it was written."""

    folder: Path
    step: int
    state: dict[str, Any]


class Saves:
    """When checkpoints are due, and how often in a row a disk may refuse one before the run stops."""

    def __init__(self, settings: CheckpointSettings) -> None:
        """Begin without a failure."""
        self._settings = settings
        self._num_failed = 0

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint follows a step: one of the recipe's, or one that has failed before."""
        every = self._settings.every
        return self._num_failed > 0 or (every > 0 and step % every == 0)

    def save(self, write: Callable[[], object], *, is_last: bool) -> None:
        """Save a checkpoint; a disk that refuses is asked again after the next step, or, for the last one, at once.

        Raises:
            StorageError: after more than ``checkpoint.max_failed_saves`` failures in a row.
        """
        budget = self._settings.max_failed_saves
        while True:
            try:
                write()
            except StorageError as error:
                self._num_failed += 1
                if self._num_failed > budget:
                    raise
                when = "again now" if is_last else "again after the next step"
                said = f"failure {self._num_failed}, checkpoint.max_failed_saves={budget} are borne"
                logger.warning("a checkpoint was not saved, %s (%s): %s", when, said, error)
                if not is_last:
                    return
            else:
                self._num_failed = 0
                return


def save_checkpoint(
    run_dir: Path,
    step: int,
    state: dict[str, Any],
    write: Callable[[Path], None],
    keep: int,
    num_bytes: int | None = None,
) -> Checkpoint:
    """Write the checkpoint of a step and drop all but the newest ``keep``.

    ``state`` are JSON values; ``write`` puts the tensor files beside them, about ``num_bytes``, into the folder that it
    is given.

    Raises:
        StorageError: if the disk is full, read-only or failing; older checkpoints are as they were.
    """
    root = run_dir / FOLDER
    folder = root / f"step_{step:06d}"
    with writing(folder, num_bytes):
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{WRITING}*"):
            shutil.rmtree(leftover)
        temporary = root / f"{WRITING}{step:06d}"
        temporary.mkdir()
        write(temporary)
        (temporary / "state.json").write_text(json.dumps({**state, "step": step}, indent=1), encoding="utf-8")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(temporary)): sha256_of(path) for path in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync_tree(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync(root)
        for old in sorted(root.glob("step_*"))[:-keep]:
            shutil.rmtree(old)
    return Checkpoint(folder=folder, step=step, state=state)


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, whole or not; 0 where there is none."""
    names = [folder.name.removeprefix("step_") for folder in (run_dir / FOLDER).glob("step_*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose files are whole; a damaged one is passed over with a warning."""
    for folder in sorted((run_dir / FOLDER).glob("step_*"), reverse=True):
        problem = _problem(folder)
        if problem is None:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(folder=folder, step=state["step"], state=state)
        logger.warning("checkpoint %s is damaged (%s); looking for an older one", folder, problem)
    return None


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"no readable {MANIFEST}: {error}"
    for name, expected in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != expected:
            return f"{name} has changed since it was written"
    return None
