"""Names of code in a recipe: ``module:name`` or ``path/to/file.py:name``.

`locate` says whether a name exists by reading source, so that a recipe is checked without running anybody's code.
"""

from __future__ import annotations

import ast
import difflib
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from unigrpo.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """Where a name of a recipe was found."""

    file: Path | None
    """None where the module is not a Python source file."""
    parameters: frozenset[str] | None
    """Keywords that it accepts; None where source does not tell (inherited, `**keywords`)."""


def split_reference(use: str) -> tuple[str, str]:
    """Return the module or file, and the name inside it.

    Raises:
        UserError: if there is no ``:name``.
    """
    target, colon, name = use.rpartition(":")
    if not colon or not target or not name.isidentifier():
        raise UserError(f'{use!r} names no code; wanted "module:Name" or "path/to/file.py:name"')
    return target, name


def is_file_reference(use: str) -> bool:
    """Return whether it names a file rather than a module."""
    return use.rpartition(":")[0].endswith(".py")


def locate(use: str) -> Located:
    """Return where a name is, from source alone: neither the module nor its parents are imported.

    Raises:
        UserError: if there is no such module, file or name; names the nearest one that exists.
    """
    target, name = split_reference(use)
    if is_file_reference(use):
        file = Path(target)
        if not file.is_file():
            raise UserError(f"{use!r}: there is no file {target}")
    else:
        spec = _find_spec(target)
        if spec is None:
            raise UserError(f"{use!r}: there is no module {target}; is it installed in this environment?")
        if spec.origin is None or not spec.origin.endswith(".py"):
            return Located(file=None, parameters=None)
        file = Path(spec.origin)
    names = _top_level_names(file)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{use!r}: {target} defines no {name!r}{hint}")
    return Located(file=file, parameters=_parameters(names[name]))


def _find_spec(module: str) -> ModuleSpec | None:
    """Find a module through the import path's finders, parent by parent, importing none of them."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    full_name = ""
    for part in module.split("."):
        full_name = f"{full_name}.{part}" if full_name else part
        spec = None
        for finder in sys.meta_path:
            spec = finder.find_spec(full_name, path)
            if spec is not None:
                break
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _top_level_names(file: Path) -> dict[str, ast.stmt]:
    """Return every name that a module binds, with the statement that binds it."""
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from error
    names: dict[str, ast.stmt] = {}
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        statement = pending.pop(0)
        if isinstance(statement, ast.If | ast.Try | ast.With):
            pending[:0] = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
        for name in _bound_names(statement):
            names[name] = statement
    return names


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


def _parameters(statement: ast.stmt) -> frozenset[str] | None:
    """Return the keywords that a class or function accepts, where its source says so."""
    match statement:
        case ast.FunctionDef(args=arguments) | ast.AsyncFunctionDef(args=arguments):
            return _argument_names(arguments)
        case ast.ClassDef(body=body, bases=bases, decorator_list=decorators):
            for member in body:
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    names = _argument_names(member.args)
                    return None if names is None else names - {"self"}
            is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in decorators)
            if is_dataclass and not bases:
                return frozenset(
                    member.target.id
                    for member in body
                    if isinstance(member, ast.AnnAssign)
                    and isinstance(member.target, ast.Name)
                    and "ClassVar" not in ast.unparse(member.annotation)
                )
            return None if bases else frozenset()
    return None


def _argument_names(arguments: ast.arguments) -> frozenset[str] | None:
    if arguments.kwarg is not None:
        return None
    return frozenset(argument.arg for argument in [*arguments.args, *arguments.kwonlyargs])
