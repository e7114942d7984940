"""What a recipe names in code, against the source of it: choices, rewards and data sources. Nobody's code runs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Set
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from unigrpo.plugin import Located, PluginError, facts, locate, locate_choice, members_of, nearest, parse_reference
from unigrpo.recipe.annotations import problem_of
from unigrpo.rewards.runtime.columns import SUPPLIED
from unigrpo.settings.base import Settings, choices_of


def choice_problems(recipe: Settings) -> Iterator[str]:
    """Yield what is wrong with each choice: a name that is not known, a parameter beside it that it does not take."""
    for key, chosen in choices_of(recipe):
        try:
            located = locate_choice(chosen.use, chosen.folder)
            if ":" in chosen.use and _is_pythons_own(chosen.use):
                yield f"{key}: {chosen.use} is of Python's own library; wanted one such as those in {chosen.folder}"
                continue
            typed = type(chosen).model_fields.keys() - {"use"}
            yield from _arguments(located, chosen.use, chosen.arguments, key, typed=typed)
            needed = facts(chosen.use, chosen.folder).get("needed")
            if isinstance(needed, str) and find_spec(needed) is None:
                yield f"{key}: {chosen.use} needs the package {needed}, which is not there; run pip install {needed}"
        except PluginError as error:
            yield f"{key}: {error}"


def code_problems(use: str, arguments: dict[str, Any], key: str, num_supplied: int | None = None) -> Iterator[str]:
    """Yield what is wrong with the arguments of a class or function, which gets ``num_supplied`` others by place.

    None is a reward, which gets them by name.
    """
    try:
        located = locate(use)
    except PluginError as error:
        yield f"{key}.use: {error}"
        return
    if _is_pythons_own(use):
        yield f"{key}.use: {use} is of Python's own library, and made for something else; wanted code of yours"
        return
    members = members_of(located)
    is_value = isinstance(located.statement, ast.Assign | ast.AnnAssign) and isinstance(
        located.statement.value, ast.Constant
    )
    if num_supplied is None and (is_value or (members is not None and "__call__" not in members)):
        yield f"{key}.use: {use} cannot be called; a reward is a function or a class with __call__"
        return
    supplied = tuple(located.annotations)[:num_supplied] if num_supplied else ()
    if num_supplied is None and isinstance(located.statement, ast.FunctionDef | ast.AsyncFunctionDef):
        supplied, located = SUPPLIED, replace(located, required=frozenset())  # the data's columns are not known yet
    yield from _arguments(located, use, arguments, f"{key}.arguments", supplied)


def _is_pythons_own(use: str) -> bool:
    place = parse_reference(use)[0]
    return not place.endswith(".py") and place.partition(".")[0] in sys.stdlib_module_names


def _arguments(
    located: Located,
    use: str,
    arguments: dict[str, Any],
    key: str,
    supplied: tuple[str, ...] = (),
    typed: Set[str] = frozenset(),
) -> Iterator[str]:
    for name in sorted(located.code_parameters.intersection(arguments)):
        if isinstance(arguments[name], str):
            try:
                locate(arguments[name])
            except PluginError as error:
                yield f"{key}.{name}: {error}"
    for name, value in arguments.items():
        if name in supplied or (located.parameters is not None and name not in located.parameters):
            known = sorted((located.annotations.keys() | typed).difference(supplied))
            hint = nearest(name, known)
            yield f"{key}.{name}: {use} takes no such argument{hint}; it takes: {', '.join(known) or 'none'}"
        elif wrong := problem_of(located.annotations.get(name, ""), value):
            yield f"{key}.{name}: {wrong}"
    for name in sorted(located.required.difference(arguments, supplied)):
        yield f"{key}.{name}: missing; {use} has no default for it"
