"""Code that a recipe names: ours by a word, anybody's by ``module:name`` or ``path/to/file.py:name``.

A choice is a file: the values of ``kl:`` are the files of ``unigrpo/methods/kl``, and adding a file adds a value. There
is no registry. `locate` and `locate_choice` say whether a name exists, and which parameters it takes, by reading
source: a recipe is checked without running anybody's code. `resolve` and `choice` import it.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import itertools
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from unigrpo.errors import UserError
from unigrpo.types import Chosen

_LOGGER = logging.getLogger(__name__)
_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
CONTRACT = "base"
"""The file of a folder of choices that holds their contract and is no choice."""

CodeReference = str
"""A parameter annotated with this name takes ``module:name`` or ``path/to/file.py:name``: `locate` reports it."""


class PluginError(UserError):
    """A name that leads to no code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """Where a name of a recipe was found."""

    file: Path | None
    """None where the module is not a Python source file."""
    parameters: frozenset[str] | None
    """Keywords that it accepts; None where source does not tell (inherited, `**keywords`)."""
    code_parameters: frozenset[str] = frozenset()
    """Those of them that name code themselves."""


def parse_reference(use: str) -> tuple[str, str]:
    """Return the two parts of a name of code: a dotted module or a ``.py`` file, and the name in it, maybe with dots.

    Raises:
        PluginError: if it is not of the form.
    """
    place, colon, name = use.rpartition(":")
    if not colon or not place or not _DOTTED.fullmatch(name):
        raise PluginError(f'{use!r} names no code; wanted "module:Name" or "path/to/file.py:name"')
    return place, name


# Finding without running


def locate(use: str) -> Located:
    """Return where a name is, from source alone: neither the module nor its parents are imported.

    Raises:
        PluginError: if there is no such module, file or name; names the nearest one that exists.
    """
    place, name = parse_reference(use)
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise PluginError(f"{use!r}: there is no file {place}")
    else:
        spec = _find_spec(place)
        if spec is None:
            raise PluginError(f"{use!r}: there is no module {place}; is it installed in this environment?")
        if spec.origin is None or not spec.origin.endswith(".py"):
            return Located(file=None, parameters=None)
        file = Path(spec.origin)
    names, inside = _bound_in(_parsed(file).body), place
    parts = name.split(".")
    for part in parts:
        if part not in names:
            raise PluginError(f"{use!r}: {inside} defines no {part!r}{nearest(part, names)}")
        statement, inside = names[part], part
        if not isinstance(statement, ast.ClassDef):
            break  # what an attribute of anything else is, only running it tells
        names = _bound_in(statement.body)
    if inside != parts[-1]:
        return Located(file=file, parameters=None)
    return _located(file, statement)


def known_choices(folder: str) -> dict[str, Path]:
    """Return the values of a choice and their files: the modules of a package, its contract left out.

    Args:
        folder: the package's dotted name, ``unigrpo.methods.kl``.
    """
    spec = _find_spec(folder)
    places = [Path(place) for place in (spec.submodule_search_locations if spec is not None else None) or ()]
    files = sorted(file for place in places for file in place.glob("*.py"))
    return {file.stem: file for file in files if file.stem not in ("__init__", CONTRACT)}


def locate_choice(use: str, folder: str) -> Located:
    """Return where the class of a choice (see `choice`) is, from source alone.

    Raises:
        PluginError: if there is none; names the nearest known value.
    """
    if ":" in use:
        return locate(use)
    return _located(known_choices(folder).get(use), class_of_choice(use, folder))


def class_of_choice(use: str, folder: str) -> ast.ClassDef:
    """Return the source of a known value's one public class.

    Raises:
        PluginError: if there is no such value.
    """
    known = known_choices(folder)
    if use not in known:
        values = ", ".join(known) or "none"
        raise PluginError(
            f'there is no {use!r}{nearest(use, known)}; known: {values}; your own: "path/to/file.py:Name"'
        )
    public = [
        node for node in _parsed(known[use]).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(public) == 1, f"{known[use]} has {len(public)} public classes; a choice is one"
    return public[0]


def facts(use: str, folder: str) -> dict[str, Any]:
    """Return the literals among the attributes of a choice's class; a call of ``key=literal`` is a dict of its keys."""
    if ":" in use:
        file = locate(use).file
        statement = None if file is None else _bound_in(_parsed(file).body).get(use.rpartition(":")[2])
    else:
        statement = class_of_choice(use, folder)
    bound = _bound_in(statement.body) if isinstance(statement, ast.ClassDef) else {}
    values = {key: _literal(node.value) for key, node in bound.items() if isinstance(node, ast.Assign | ast.AnnAssign)}
    return {key: value for key, value in values.items() if value is not None}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'NAME'?`` for the known name that is nearest; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# Finding by importing


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

    Args:
        use: a file of the folder without its suffix, or a user's ``path/to/file.py:Name`` or ``module:Name``.
        folder: the dotted name of the package whose files are the known values.

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

    Raises:
        PluginError: if there is no such class, or it refuses its parameters.
    """
    made = choice(chosen.use, chosen.folder)
    try:
        return made(**chosen.arguments, **supplied)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{chosen.use}: {error}") from error


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
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as undo:
        undo.callback(sys.modules.pop, name, None)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


# Reading source


def _find_spec(module: str) -> ModuleSpec | None:
    """Find a module through the import path's finders, parent by parent, importing none of them."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    for full_name in itertools.accumulate(module.split("."), "{}.{}".format):
        found = (finder.find_spec(full_name, path) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        raise PluginError(f"{file}, line {error.lineno}: {error.msg}") from error


def _bound_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return every name that a module or class binds, with the statement that binds it."""
    names: dict[str, ast.stmt] = {}
    pending: list[ast.stmt] = list(body)
    while pending:
        statement = pending.pop(0)
        if isinstance(statement, ast.If | ast.Try | ast.With):
            pending[:0] = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
        for name in _bound_names(statement):
            names[name] = statement
    return names


def _literal(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        return {word.arg: _literal(word.value) for word in value.keywords}
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _bound_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name.partition(".")[0] for alias in aliases]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _located(file: Path | None, statement: ast.stmt) -> Located:
    """Return the keywords that a class or function accepts, where its source says so, and those that name code."""
    annotations, is_whole = _parameters(statement)
    code = frozenset(name for name, annotation in annotations.items() if "CodeReference" in annotation)
    return Located(file=file, parameters=frozenset(annotations) if is_whole else None, code_parameters=code)


def _parameters(statement: ast.stmt) -> tuple[dict[str, str], bool]:
    """Return the annotations of parameters by name, and whether these are all that are accepted."""
    match statement:
        case ast.FunctionDef(args=arguments) | ast.AsyncFunctionDef(args=arguments):
            every = [*arguments.args, *arguments.kwonlyargs]
            named = {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in every}
            return named, arguments.kwarg is None
        case ast.ClassDef(body=body, bases=bases, decorator_list=decorators):
            for member in body:
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    named, is_whole = _parameters(member)
                    return {name: annotation for name, annotation in named.items() if name != "self"}, is_whole
            fields = {
                member.target.id: ast.unparse(member.annotation)
                for member in body
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name)
            }
            if bases or not any("dataclass" in ast.unparse(decorator) for decorator in decorators):
                return {}, not bases
            return {name: annotation for name, annotation in fields.items() if "ClassVar" not in annotation}, True
    return {}, False
