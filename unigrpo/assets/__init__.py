"""Small checkpoints that ship with the package, in the released layouts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from unigrpo.errors import MissingFileError

PREFIX = "asset:"


def asset_folder(name: str) -> Path:
    """Return the folder of an asset, named with or without ``asset:``.

    Raises:
        FileNotFoundError: naming the assets there are.
    """
    root = Path(str(resources.files("unigrpo.assets").joinpath("__init__.py"))).parent
    known = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("_"))
    bare = name.removeprefix(PREFIX)
    if bare not in known:
        raise MissingFileError(f"no asset {bare!r} ships with the package; there are: {', '.join(known) or 'none'}")
    return root / bare
