"""Names of code, found in source: nothing is imported, and nobody's code runs."""

from __future__ import annotations

import ast
import difflib
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from unigrpo.errors import UserError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_PLAIN_BASES = frozenset({"object", "Protocol", "ABC", "Generic"})
"""Bases that bring no parameters."""
CONTRACT = "base"
"""The file of a folder of choices that holds their contract and is no choice."""

CodeReference = str
"""A parameter annotated with this name takes ``module:name`` or ``path/to/file.py:name``: `locate` reports it."""


class PluginError(UserError):
    """A name that leads to no code, or code that is not what is wanted there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """Where a name of a recipe was found."""

    file: Path | None
    """None where the module is not a Python source file."""
    statement: ast.stmt | None = None
    """What binds it there; None where only running the code tells."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotation of each keyword that it is known to accept, as the source has it; empty where there is none."""
    required: frozenset[str] = frozenset()
    """Those of them without a default."""
    is_whole: bool = False
    """Whether it accepts no others; source does not tell of `**keywords` and of bases that are not found."""

    @property
    def parameters(self) -> frozenset[str] | None:
        """Return the keywords that it accepts; None where source does not tell."""
        return frozenset(self.annotations) if self.is_whole else None

    @property
    def code_parameters(self) -> frozenset[str]:
        """Return the keywords that name code themselves."""
        return frozenset(name for name, annotation in self.annotations.items() if "CodeReference" in annotation)


def parse_reference(use: str) -> tuple[str, str]:
    """Return the two parts of a name of code: a dotted module or a ``.py`` file, and the name in it, maybe with dots.

    Raises:
        PluginError: if it is not of the form.
    """
    place, colon, name = use.rpartition(":")
    if not colon or not place or not _DOTTED.fullmatch(name):
        raise PluginError(f'{use!r} names no code; wanted "module:Name" or "path/to/file.py:name"')
    return place, name


def locate(use: str) -> Located:
    """Return where a name is, from source alone: neither the module nor its parents are imported.

    Raises:
        PluginError: if there is no such module, file or name; names the nearest one that exists.
    """
    place, name = parse_reference(use)
    if place.endswith(".py"):
        file = Path(place).expanduser()
        if not file.is_file():
            raise PluginError(f"{use!r}: there is no file {place}")
    else:
        spec = _find_spec(place)
        if spec is None:
            raise PluginError(f"{use!r}: there is no module {place}; is it installed in this environment?")
        if spec.origin is None or not spec.origin.endswith(".py"):
            return Located(file=None)
        file = Path(spec.origin)
    names, inside = _names_of(file), place
    statement: ast.stmt | None = None
    for part in name.split("."):
        if isinstance(statement, ast.stmt) and not isinstance(statement, ast.ClassDef):
            return Located(file=file)  # what an attribute of anything else is, only running it tells
        if part not in names:
            if "*" in names or "__getattr__" in names or (isinstance(statement, ast.ClassDef) and statement.bases):
                return Located(file=file)
            raise PluginError(f"{use!r}: {inside} defines no {part!r}{nearest(part, names)}")
        statement, inside = names[part], part
        names = _bound_in(statement.body) if isinstance(statement, ast.ClassDef) else {}
    assert statement is not None
    return _located(file, statement)


def call_of(located: Located) -> Located | None:
    """Return what a call of a function, or of a class's instance, takes; None where source does not tell.

    It does not where something is wrapped around it, or a base that is not found may bring the call.
    """
    statement = located.statement
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        is_told = all(ast.unparse(decorator) == "staticmethod" for decorator in statement.decorator_list)
        return replace(located, **_signature(statement)) if is_told else None
    if not isinstance(statement, ast.ClassDef) or located.file is None:
        return None
    for one in _family(located.file, statement)[0]:
        call = _bound_in(one.body).get("__call__")
        if isinstance(call, ast.FunctionDef | ast.AsyncFunctionDef) and not call.decorator_list:
            return Located(file=located.file, statement=call, **_signature(call, skip=1))
        if call is not None:
            return None
    return None


def members_of(located: Located) -> frozenset[str] | None:
    """Return the names that a class and its bases bind; None where source does not tell."""
    if not isinstance(located.statement, ast.ClassDef) or located.file is None:
        return None
    family, is_whole = _family(located.file, located.statement)
    return frozenset(name for one in family for name in _bound_in(one.body)) if is_whole else None


def known_choices(folder: str) -> dict[str, Path]:
    """Return the values of a choice and their files: the modules of a package, its contract left out.

    The folder is the package's dotted name, ``unigrpo.methods.kl``.
    """
    return {file.stem: file for file in _files(folder) if file.stem not in ("__init__", CONTRACT)}


def locate_choice(use: str, folder: str) -> Located:
    """Return where the class of a choice (see `choice`) is, from source alone.

    Raises:
        PluginError: if there is none (names the nearest known value), it lacks a method of the folder's contract, or a
            method of it takes fewer arguments than that is called with.
    """
    found = locate(use) if ":" in use else _located(known_choices(folder).get(use), class_of_choice(use, folder))
    if isinstance(found.statement, ast.FunctionDef | ast.AsyncFunctionDef):
        raise PluginError(f"{use!r} is a function; wanted a class, such as those in {folder}")
    if isinstance(found.statement, ast.ClassDef) and found.file is not None:
        bound = members_of(found)
        absent = [name for name in contract(folder, ast.FunctionDef) if bound is not None and name not in bound]
        if absent:
            raise PluginError(incomplete(use, absent, folder))
        if few := next(_with_fewer_arguments(found.file, found.statement, folder), None):
            raise PluginError(f"{use!r}: {few}")
    return found


def _with_fewer_arguments(file: Path, statement: ast.ClassDef, folder: str) -> Iterator[str]:
    """Yield a line for each plain method of a class that cannot take what the folder's contract gives it."""
    for name, wanted in _members_of_contract(folder).items():
        own = next((one for cls in _family(file, statement)[0] if (one := _bound_in(cls.body).get(name))), None)
        methods = [method for method in (own, wanted) if isinstance(method, ast.FunctionDef)]
        if len(methods) < 2 or any(method.decorator_list for method in methods):
            continue
        (few, taken), (_, given) = ((method.args, _arguments(method)) for method in methods)
        if not (few.vararg or few.kwarg) and len(taken) < len(given):
            yield f"{name} takes fewer arguments than {folder}.{CONTRACT} says: {', '.join(given)}"


def _arguments(method: ast.FunctionDef) -> list[str]:
    taken = method.args
    return [argument.arg for argument in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]


def contract(folder: str, *kinds: type[ast.stmt]) -> list[str]:
    """Return what a choice of a folder must have: the members of the first protocol in its ``base.py``."""
    return [name for name, bound in _members_of_contract(folder).items() if isinstance(bound, kinds)]


def _members_of_contract(folder: str) -> dict[str, ast.stmt]:
    file = next((file for file in _files(folder) if file.stem == CONTRACT), None)
    classes = [] if file is None else [node for node in _parsed(file).body if isinstance(node, ast.ClassDef)]
    protocol = next(filter(_is_protocol, classes), None)
    return {} if protocol is None else _bound_in(protocol.body)


def incomplete(use: str, absent: Iterable[str], folder: str) -> str:
    """Return what is said of a class that lacks members of its contract."""
    return f"{use!r} has no {', '.join(absent)}; {folder}.{CONTRACT} says what is wanted"


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
    if len(public) != 1:
        raise PluginError(f"{known[use]} has {len(public)} public classes; wanted one, with the others' names behind _")
    return public[0]


def facts(use: str, folder: str) -> dict[str, Any]:
    """Return the literals among the attributes of a choice's class; a call of ``key=literal`` is a dict of its keys."""
    statement = locate(use).statement if ":" in use else class_of_choice(use, folder)
    bound = _bound_in(statement.body) if isinstance(statement, ast.ClassDef) else {}
    values = {key: _literal(node.value) for key, node in bound.items() if isinstance(node, ast.Assign | ast.AnnAssign)}
    return {key: value for key, value in values.items() if value is not None}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'NAME'?`` for the known name that is nearest; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _files(folder: str) -> list[Path]:
    spec = _find_spec(folder)
    places = [Path(place) for place in (spec.submodule_search_locations if spec is not None else None) or ()]
    return sorted(file for place in places for file in place.glob("*.py"))


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
    state = file.stat()
    return _parsed_once(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _parsed_once(file: Path, mtime_ns: int, size: int) -> ast.Module:
    """Return a file's tree; one sampling call makes its schedule and order, and so asks for the same few again."""
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        raise PluginError(f"{file}, line {error.lineno}: {error.msg}") from error


def _names_of(file: Path) -> dict[str, ast.stmt]:
    return _bound_in(_parsed(file).body)


def _bound_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return every name that a module or class binds, with the statement that binds it."""
    names: dict[str, ast.stmt] = {}
    pending: list[ast.stmt] = list(body)
    while pending:
        statement = pending.pop(0)
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            parts = [statement, *(statement.handlers if isinstance(statement, ast.Try) else ())]
            inner = [child for part in parts for child in ast.iter_child_nodes(part)]
            pending[:0] = [child for child in inner if isinstance(child, ast.stmt)]
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
            nodes = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
            return [node.id for node in nodes if isinstance(node.ctx, ast.Store)]  # `f.range = (0, 1)` binds no f
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.For(target=ast.Name(id=name)):
            return [name]
    return []


def _literal(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        return {word.arg: _literal(word.value) for word in value.keywords}
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _is_protocol(statement: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2] == "Protocol" for base in statement.bases)


def _located(file: Path | None, statement: ast.stmt) -> Located:
    """Return the keywords that a class or function accepts, as far as source tells."""
    found = partial(Located, file=file, statement=statement)
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return found(**_signature(statement))
    if not isinstance(statement, ast.ClassDef) or file is None:
        return found()
    family, is_whole = _family(file, statement)
    for one in family:
        makers = [
            part for part in one.body if isinstance(part, ast.FunctionDef) and part.name in ("__init__", "__new__")
        ]
        if makers:  # where a base is not known, its own may come before that of another
            is_told = len(makers) == 1 and (is_whole or one is statement)
            return found(**_signature(makers[0], skip=1)) if is_told else found()
        if any("dataclass" not in ast.unparse(decorator) for decorator in one.decorator_list):
            return found()
        if one.decorator_list:
            break
    annotations: dict[str, str] = {}
    required: set[str] = set()
    for one in reversed([one for one in family if one.decorator_list]):
        for name, annotation, has_default in _fields(one):
            annotations[name] = annotation
            (required.discard if has_default else required.add)(name)
    return found(annotations=annotations, required=frozenset(required), is_whole=is_whole)


def _family(file: Path, statement: ast.ClassDef) -> tuple[list[ast.ClassDef], bool]:
    """Return a class with its bases, the nearest first, and whether all were found."""
    family, is_whole = [statement], not statement.keywords
    for base in statement.bases:
        name = ast.unparse(base).partition("[")[0]
        if name.rpartition(".")[2] in _PLAIN_BASES:
            continue
        found = _imported(file, name)
        if found is None or found[1] is statement:  # class Adam(Adam), the base imported under the same name
            is_whole = False
            continue
        above, is_above_whole = _family(*found)
        family, is_whole = [*family, *above], is_whole and is_above_whole
    return family, is_whole


def _imported(file: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """Return the class that a name means in a file, and the file that defines it; None where source does not tell."""
    statement = _names_of(file).get(name)
    if isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
        spec = _find_spec(statement.module)
        own = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py") or Path(spec.origin) == file:
            return None
        return _imported(Path(spec.origin), own)
    return (file, statement) if isinstance(statement, ast.ClassDef) else None


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef, skip: int = 0) -> dict[str, Any]:
    """Return what `Located` says of a function's parameters, without the first ``skip``."""
    given = function.args
    every = [*given.posonlyargs, *given.args][skip:]
    num_without = max(0, len(every) - len(given.defaults))
    bare = [one for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is None]
    return {
        "annotations": {
            one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in (*every, *given.kwonlyargs)
        },
        "required": frozenset(one.arg for one in (*every[:num_without], *bare)),
        "is_whole": given.kwarg is None,
    }


def _fields(statement: ast.ClassDef) -> Iterator[tuple[str, str, bool]]:
    """Yield name, annotation and whether there is a default, of each field that a dataclass takes."""
    for member in statement.body:
        if not isinstance(member, ast.AnnAssign) or not isinstance(member.target, ast.Name):
            continue
        annotation, words = ast.unparse(member.annotation), None
        if isinstance(member.value, ast.Call) and ast.unparse(member.value.func).rpartition(".")[2] == "field":
            words = {word.arg: ast.unparse(word.value) for word in member.value.keywords}
        if "ClassVar" in annotation or "KW_ONLY" in annotation or (words or {}).get("init") == "False":
            continue
        has_default = member.value is not None and (
            words is None or bool({"default", "default_factory"} & words.keys())
        )
        yield member.target.id, annotation, has_default
