"""Checkpoints that are whole or absent: written under a temporary name, synced, hashed, renamed.

A step's folder holds ``adapter/`` in PEFT layout (or ``model.safetensors`` without LoRA), ``optimizer.safetensors``,
``state.json`` and ``manifest.json`` with the sha256 of each. All randomness is a function of (seed, step), so the step
is the whole state of every generator.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.documents import parse_json
from unigrpo.errors import StorageError, UserError
from unigrpo.files import json_text, sha256_of, sync, sync_tree, writing
from unigrpo.runs.records import State, read_manifest, read_record, record_of
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
    state: State


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
    folder = root / name_of(step)
    text = json_text({**state, "step": step}, indent=1)
    with writing(folder, num_bytes):
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{WRITING}*"):
            shutil.rmtree(leftover)
        temporary = root / f"{WRITING}{step:06d}"
        temporary.mkdir()
        write(temporary)
        (temporary / "state.json").write_text(text, encoding="utf-8")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(temporary)): sha256_of(path) for path in files}
        (temporary / MANIFEST).write_text(json_text(manifest, indent=1), encoding="utf-8")
        sync_tree(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync(root)
        for old in sorted(root.glob("step_*"))[:-keep]:
            shutil.rmtree(old)
    return Checkpoint(folder=folder, step=step, state=record_of(State, parse_json(text), folder))


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, whole or not; 0 where there is none."""
    names = [folder.name.removeprefix("step_") for folder in (run_dir / FOLDER).glob("step_*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def latest_checkpoint(run_dir: Path, load: Callable[[Path], None] = lambda folder: None) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, and that ``load`` takes; None where none was written yet.

    One that is damaged or does not fit is passed over, with a warning that names the file.

    Raises:
        UserError: if there are checkpoints and none can be used.
    """
    root = run_dir / FOLDER
    problems = []
    for folder in sorted(root.glob("step_*"), reverse=True):
        try:
            checkpoint = _whole(folder)
            load(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; going on from %s instead", problem, folder)
        return checkpoint
    if problems:
        raise UserError(
            f"no checkpoint in {root} can be used: {'; '.join(problems)}; put a copy back, or delete {root} to begin "
            "again at step 0"
        )
    return None


def _whole(folder: Path) -> Checkpoint:
    for name, expected in read_manifest(folder / MANIFEST).items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if sha256_of(folder / name) != expected:
            raise UserError(f"{folder / name} is damaged: it has changed since it was written")
    state = read_record(State, folder / "state.json", "it says where the run was")
    if folder.name != name_of(state.step):
        raise UserError(f"{folder / 'state.json'} is of step {state.step}, and the folder of another")
    return Checkpoint(folder=folder, step=state.step, state=state)


def name_of(step: int) -> str:
    """Return the name of a step's folder."""
    return f"step_{step:06d}"
