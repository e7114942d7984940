"""Find what ``use:`` names in a recipe: our classes and the user's, by one rule and without a registry."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

_LOGGER = logging.getLogger(__name__)


_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


class PluginError(ValueError):
    """A ``use:`` that names nothing."""


def resolve(use: str, *, folder: Path | None = None) -> object:
    """Return the object that ``use`` names. This runs the code of that module or file.

    Args:
        use: ``"package.module:name"`` or ``"path/to/file.py:name"``; dots in the name reach attributes.
        folder: where a relative path starts; None is the folder of :func:`relative_to`, else the working directory.

    Raises:
        PluginError: if the module, the file or the name does not exist; it says what was looked for and what there is.
    """
    place, separator, name = use.rpartition(":")
    if not separator or not place or not name:
        raise PluginError(f"use: {use!r} names no object; write 'package.module:name' or 'path/to/file.py:name'")
    module = (
        _load_file(Path(place), use, folder or _FOLDER.get()) if place.endswith(".py") else _load_module(place, use)
    )
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_"))[:20]) or "nothing public"
            raise PluginError(f"use: {use!r}: {place} has no {name!r}; it has {public}")
        found = getattr(found, part)
    if not place.startswith("unigrpo."):
        _LOGGER.info("use: %s loads code from %s", use, getattr(module, "__file__", place))
    return found


@contextmanager
def relative_to(folder: Path | None) -> Iterator[None]:
    """Have relative paths start at a folder: also those that a constructor finds in its arguments and resolves."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def _load_module(place: str, use: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise
        raise PluginError(
            f"use: {use!r}: there is no module {error.name!r} on the path; install it, "
            "or name the file instead: 'path/to/file.py:name'"
        ) from error


def _load_file(path: Path, use: str, folder: Path | None) -> ModuleType:
    file = ((folder or Path.cwd()) / path.expanduser()).resolve()
    if not file.is_file():
        raise PluginError(f"use: {use!r}: there is no file {file}; relative paths start at {folder or Path.cwd()}")
    # The name holds a digest of the path: two files called rewards.py do not shadow each other or a package.
    name = f"unigrpo_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"use: {use!r}: {file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    is_loaded = False
    try:
        spec.loader.exec_module(module)
        is_loaded = True
    finally:
        if not is_loaded:
            del sys.modules[name]
    return module
