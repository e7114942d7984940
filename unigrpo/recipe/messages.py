"""Short lines for what pydantic finds: the key's path, what was given, what was wanted, the nearest known key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from unigrpo.sanitized import short_repr
from unigrpo.settings.base import Choice


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line for each problem that the validation of a settings class raised."""
    return [_describe_one(detail, model) for detail in error.errors(include_url=False)]


def _describe_one(detail: Any, model: type[BaseModel]) -> str:
    location = [part for part in detail["loc"] if part != "[key]"]
    path = ".".join(str(part) for part in location)
    is_key = "[key]" in detail["loc"]
    kind = detail["type"]
    if kind == "extra_forbidden":
        section = annotation_at(model, location[:-1])
        known = list(section.model_fields) if _is_model(section) else []
        hint = _hint(str(location[-1]), known) or f"; known here: {', '.join(known)}"
        return f"{path}: unknown key{hint}"
    if kind == "missing":
        return f"{path}: missing; wanted {_wanted_of(model, location)}"
    return f"{path}: {wrong_value(detail, is_key=is_key)}"


def wrong_value(detail: Any, *, is_key: bool = False) -> str:
    """Return what was given and what was wanted, of one of the errors of a validation."""
    given = detail["input"]
    if detail["type"] == "literal_error":
        choices = [choice.strip("' ") for choice in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
        noun = "unknown key" if is_key else f"given {short_repr(given)}"
        return f"{noun}; wanted one of {', '.join(choices)}{_hint(str(given), choices)}"
    wanted = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"given {short_repr(given)}, wanted {wanted}"


def _hint(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""


def _wanted_of(model: type[BaseModel], location: list[Any]) -> str:
    parent = annotation_at(model, location[:-1])
    field = parent.model_fields.get(location[-1]) if _is_model(parent) else None
    if field is None:
        return "a value"
    if field.description:
        return field.description.rstrip(".")
    annotation = _plain(field.annotation)
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    is_section = _is_model(annotation) or get_origin(annotation) is dict
    return "a section" if is_section else f"a value ({names.get(annotation, annotation)})"


def annotation_at(model: type[BaseModel], location: list[Any]) -> Any:
    """Follow a path through sections and mappings to the type that stands there."""
    annotation: Any = model
    for part in location:
        annotation = _plain(annotation)
        if _is_model(annotation):
            field = annotation.model_fields.get(part)
            annotation = field.annotation if field is not None else None
        elif get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
        else:
            return None
    return _plain(annotation)


def _plain(annotation: Any) -> Any:
    """Return X of `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((part for part in get_args(annotation) if part is not type(None)), None)
    return annotation


def is_choice(annotation: Any) -> bool:
    """Return whether a type is a choice's, which a bare name stands for, too."""
    return isinstance(annotation, type) and issubclass(annotation, Choice)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
