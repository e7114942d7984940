"""Names of code, found by importing it: this runs the code that they name."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from unigrpo.plugin.source import PluginError, class_of_choice, contract, incomplete, parse_reference
from unigrpo.types import Chosen

_LOGGER = logging.getLogger(__name__)
_NEIGHBORHOODS: list[Path] = []
"""Folders whose files users' files have been imported from in this process."""
_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


def resolve(use: str, *, folder: Path | None = None) -> object:
    """Return the object that ``use`` names. This runs the code of that module or file.

    Args:
        use: ``"package.module:name"`` or ``"path/to/file.py:name"``; dots in the name reach attributes.
        folder: where a relative path starts; None is the folder of :func:`relative_to`, else the working directory.

    Raises:
        PluginError: if the module, the file or the name does not exist; it says what was looked for and what there is.
    """
    place, name = parse_reference(use)
    is_file = place.endswith(".py")
    module = _load_file(Path(place), use, folder or _FOLDER.get()) if is_file else _load_module(place, use)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_"))[:20]) or "nothing public"
            raise PluginError(f"{use!r}: {place} has no {name!r}; it has {public}")
        found = getattr(found, part)
    if not place.startswith("unigrpo."):
        _LOGGER.info("use: %s loads code from %s", use, getattr(module, "__file__", place))
    return found


def choice(use: str, folder: str) -> type:
    """Return the class that a choice names; its parameters are its own fields.

    ``use`` is a file of the folder (a dotted package) without its suffix, or a user's ``path/to/file.py:Name``.

    Raises:
        PluginError: if there is none, or a user's name is no class.
    """
    if ":" not in use:
        name = class_of_choice(use, folder).name
        return getattr(importlib.import_module(f"{folder}.{use}"), name)
    found = resolve(use)
    if not isinstance(found, type):
        raise PluginError(f"{use!r} is a {type(found).__name__}; wanted a class, such as those in {folder}")
    return found


def make(chosen: Chosen, **supplied: Any) -> Any:
    """Return an object of the class that a recipe chose, made with the recipe's parameters and those ``supplied``.

    A class refuses a parameter by a `UserError`, or by pydantic's annotations; any other error of it is its bug.

    Raises:
        PluginError: if there is no such class, it refuses its parameters, or lacks something of the contract.
    """
    made = choice(chosen.use, chosen.folder)
    given = {**chosen.arguments, **supplied}
    try:
        inspect.signature(made).bind(**given)
    except TypeError as error:
        raise PluginError(f"{chosen.use}: {error}") from error
    try:
        found = made(**given)
    except ValueError as error:
        if not hasattr(error, "errors"):  # pydantic's have their parts; an interpreter of rewards may lack pydantic
            raise
        parts = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}, given {one['input']!r}" for one in error.errors())
        raise PluginError(f"{chosen.use}: {'; '.join(parts)}") from error
    members = contract(chosen.folder, ast.FunctionDef, ast.AnnAssign)
    if absent := [name for name in members if not hasattr(found, name)]:
        raise PluginError(incomplete(chosen.use, absent, chosen.folder))
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
            f"{use!r}: there is no module {error.name!r} on the path; install it, "
            "or name the file instead: 'path/to/file.py:name'"
        ) from error


def _load_file(path: Path, use: str, folder: Path | None) -> ModuleType:
    file = ((folder or Path.cwd()) / path.expanduser()).resolve()
    if not file.is_file():
        raise PluginError(f"{use!r}: there is no file {file}; relative paths start at {folder or Path.cwd()}")
    # The name holds a digest of the path: two files called rewards.py do not shadow each other or a package.
    name = f"unigrpo_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{use!r}: {file} cannot be imported as Python")
    _reach_neighbors(file, use)
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as undo:
        undo.callback(sys.modules.pop, name, None)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


def _reach_neighbors(file: Path, use: str) -> None:
    """Let a file import those beside it, also in later calls; what is installed comes first.

    Raises:
        PluginError: if it imports one whose name another user's file, of another folder, has taken in this process.
    """
    for name in sorted(_imported(file)):
        loaded = getattr(sys.modules.get(name), "__file__", None)
        is_neighbor = (file.parent / f"{name}.py").is_file() or (file.parent / name).is_dir()
        if is_neighbor and loaded is not None and Path(loaded).is_relative_to(file.parent):
            continue
        if is_neighbor and loaded is not None and any(Path(loaded).is_relative_to(folder) for folder in _NEIGHBORHOODS):
            raise PluginError(
                f"{use!r}: {file} imports {name} from beside it, but {loaded} has that name in this process already; "
                "rename one of them, or give the reward a worker of its own"
            )
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    _NEIGHBORHOODS.append(file.parent)


def _imported(file: Path) -> set[str]:
    """Return the first parts of the names that a file imports; nothing where it is no Python, which importing says."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}
