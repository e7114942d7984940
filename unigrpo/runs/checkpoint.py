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

from unigrpo.files import json_text, sha256_of, sync, sync_tree

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FOLDER = "checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified folder and the step after which it was written."""

    folder: Path
    step: int
    state: dict[str, Any]


def save_checkpoint(
    run_dir: Path, step: int, state: dict[str, Any], write: Callable[[Path], None], keep: int
) -> Checkpoint:
    """Write the checkpoint of a step and drop all but the newest ``keep``.

    ``state`` are JSON values; ``write`` puts the tensor files beside them, into the folder that it is given.
    """
    root = run_dir / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".writing-*"):
        shutil.rmtree(leftover)
    temporary = root / f".writing-{step:06d}"
    temporary.mkdir()
    write(temporary)
    (temporary / "state.json").write_text(json_text({**state, "step": step}, indent=1), encoding="utf-8")
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(temporary)): sha256_of(path) for path in files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync_tree(temporary)
    folder = root / f"step_{step:06d}"
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    sync(root)
    for old in sorted(root.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return Checkpoint(folder=folder, step=step, state=state)


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
