"""What a run is made from, by content: data files and their pictures, the code and files of a recipe, and its base.

``identity.json`` in the run directory holds a hash of each under its key in the recipe, and the changes that somebody
accepted. A file that moved is the same file. Not held: code of this package (its version stands in environment.json),
and folders and published models that rewards load.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unigrpo.data.jsonl import named_pictures
from unigrpo.documents import read_object
from unigrpo.errors import UserError
from unigrpo.files import json_text, sha256_of, write_atomically
from unigrpo.models.files.folders import HUB_ID, resolve_folder
from unigrpo.plugin import PluginError, locate
from unigrpo.rewards.process.traits import sources_of
from unigrpo.runs.metrics import read_metrics
from unigrpo.settings.policy import PolicySettings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"
WHOLE_BYTES = 64 << 20
"""Of a file that is hashed whole; of a larger one the size and `NUM_PIECES` pieces, evenly spread."""
NUM_PIECES = 64
PIECE_BYTES = 64 << 10
_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Files of a checkpoint that loading it may read."""
_CODE = re.compile(r"(?P<place>[^\n:]+):[\w.]+")


def identity_of(recipe: Recipe | SftRecipe) -> dict[str, str]:
    """Return the hash of all that a recipe names, by its key in the recipe."""
    found: dict[str, str] = {}
    for name, task in recipe.tasks.items():
        files = {"jsonl": task.data.jsonl, "eval_jsonl": task.data.eval_jsonl}
        for key, path in files.items():
            if path is not None:
                found[f"tasks.{name}.data.{key}"] = sha256_of(Path(path))
                if pictures := named_pictures(Path(path), task.data.columns):
                    found[f"tasks.{name}.data.{key} (pictures)"] = _hash_of_all(pictures)
    for key, text in _texts(recipe.model_dump(mode="json"), ""):
        if (code := _hash_of_code(text)) is not None:
            found[key] = code
        elif ".arguments." in key and os.path.isfile(text):
            found[key] = _hash_of_file(Path(text))
    return found | _hashes_of_base(recipe.policy)


def record_identity(recipe: Recipe | SftRecipe, run_dir: Path) -> None:
    """Write down what a new run is made from."""
    _write(run_dir, identity_of(recipe), [])


def check_identity(recipe: Recipe | SftRecipe, run_dir: Path, *, accepts_changes: bool) -> None:
    """Compare what a run was made from with what is there now, before it goes on.

    What a changed recipe names anew is written down without a word. A run without the file gets one.

    Raises:
        UserError: if something changed, unless that is accepted, which is written down with the steps done.
    """
    now = identity_of(recipe)
    if not (run_dir / IDENTITY).is_file():
        logger.warning(f"{run_dir} does not say by {IDENTITY} what it was made from; it does from now on")
        _write(run_dir, now, [])
        return
    before, accepted = _read(run_dir / IDENTITY)
    changed = {key: before[key] for key in now if before.get(key, now[key]) != now[key]}
    if changed and not accepts_changes:
        raise UserError(
            f"since {run_dir} began, the content changed of {', '.join(changed)} (keys of its recipe.yaml), so that "
            "its steps would no longer be of one run; put back what it was, start a new run, or go on with the change: "
            f"unigrpo resume {run_dir} --accept-changes"
        )
    if changed:
        records = read_metrics(run_dir)
        accepted = [*accepted, {"step": records[-1]["step"] if records else 0, "before": changed}]
        logger.warning(f"going on with changed content of {', '.join(changed)}; {IDENTITY} says so")
    if now != before:
        _write(run_dir, before | now, accepted)


def hash_of_checkpoint(folder: Path) -> str:
    """Return a hash of the files of a checkpoint: names, sizes, and content, of large files in pieces."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith("."):
            digest.update(json_text([path.name, path.stat().st_size, _hash_of_file(path)]).encode())
    return digest.hexdigest()


def _hash_of_all(files: Iterable[Path]) -> str:
    """Return a hash of the content of files, whatever they are called."""
    return hashlib.sha256("".join(map(_hash_of_file, files)).encode()).hexdigest()


def _hash_of_file(path: Path) -> str:
    size = path.stat().st_size
    return sha256_of(path) if size <= WHOLE_BYTES else _hash_of_pieces(path, size)


def _hash_of_pieces(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(NUM_PIECES):
            file.seek((size - PIECE_BYTES) * number // (NUM_PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def _hashes_of_base(settings: PolicySettings) -> dict[str, str]:
    """Return the hashes of a policy's folders; of a hub id the commit."""
    found = {}
    for key in ("path", "image_tokenizer", "adapter"):
        path = getattr(settings, key)
        if path is None:
            continue
        if HUB_ID.match(path) and not Path(path).is_dir():
            revision = settings.revision if key == "path" else None
            found[f"policy.{key}"] = resolve_folder(path, files=("config.json",), revision=revision).name
        else:
            found[f"policy.{key}"] = hash_of_checkpoint(resolve_folder(path))
    return found


def _hash_of_code(text: str) -> str | None:
    """Return the hash of the file of ``place:name`` and of what it imports from its folder; None where it is no code.

    Code of this package has none: its version says which it is.
    """
    match = _CODE.fullmatch(text)
    if match is None or match["place"].startswith("unigrpo."):
        return None
    try:
        file = locate(text).file
    except PluginError:
        return None
    if file is None:
        return None
    return hashlib.sha256(repr(sorted(sources_of(file).items())).encode()).hexdigest()


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a recipe with its key."""
    if isinstance(value, str):
        yield key, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _texts(part, f"{key}.{name}".removeprefix("."))


def _read(path: Path) -> tuple[dict[str, str], list[Any]]:
    way_out = "delete it to go on without comparing"
    document = read_object(path, way_out)
    content, accepted = document.get("content"), document.get("accepted")
    if isinstance(content, dict) and isinstance(accepted, list):
        if all(isinstance(text, str) for text in content.values()):
            return content, accepted
    raise UserError(f"{path} is damaged; {way_out}")


def _write(run_dir: Path, content: Mapping[str, str], accepted: list[Any]) -> None:
    write_atomically(run_dir / IDENTITY, json_text({"content": content, "accepted": accepted}, indent=1) + "\n")
