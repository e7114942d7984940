"""Where a checkpoint lies: a folder, a hub id, or an asset that ships with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unigrpo.assets import PREFIX, asset_folder
from unigrpo.documents import read_object
from unigrpo.errors import MissingFileError
from unigrpo.files import usable

HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")


def resolve_folder(path: str | Path, *, files: tuple[str, ...] = (), revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, downloading a hub id if the cache does not hold it.

    ``files`` are glob patterns of what to download (none is everything), ``revision`` a branch, tag or commit.

    Raises:
        MissingFileError: if there is no such folder or asset, or the hub does not deliver it.
    """
    text = str(path)
    if text.startswith(PREFIX):
        return asset_folder(text)
    with usable(Path(text)):
        is_folder = Path(text).is_dir()
    if is_folder:
        return Path(text)
    if not HUB_ID.match(text):
        raise MissingFileError(f"there is no folder {text}; give a folder, a hub id such as owner/name, or asset:NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(files) or None))
    except OSError as error:
        raise MissingFileError(
            f"{text} is no folder here and the hub did not deliver it ({error}); check the name, the network and "
            "HF_TOKEN, or download it elsewhere and give the folder"
        ) from error


def public_name(path: str) -> str:
    """Return a hub id, an asset or a relative path as it is, and the name alone of a folder of this machine."""
    return Path(path).name if Path(path).is_absolute() else path


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a checkpoint's JSON file.

    Raises:
        UserError: naming the file, if it is no regular file or holds no JSON object.
    """
    return read_object(path, "download it again")
