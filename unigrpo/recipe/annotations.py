"""A value against a parameter's annotation as source has it: what plain types, literals and bounds tell. Torch-free."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from unigrpo.recipe.messages import wrong_value

_PLAIN: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": None, "CodeReference": str}
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)


def problem_of(annotation: str, value: Any) -> str | None:
    """Return what is wrong with a value for an annotation; None where nothing is, or where that does not tell.

    Plain types (an integer is a float, and no text is a number), unions of them, ``Literal`` and pydantic's bounds
    (``Annotated[float, Field(gt=0)]``) are understood; what holds another type takes any value.
    """
    adapter = _adapter(annotation)
    try:
        if adapter is not None:
            adapter.validate_python(value)
    except ValidationError as error:
        return wrong_value(error.errors()[0])
    except TypeError:  # a bound that does not fit its own type is the class's matter
        return None
    return None


@lru_cache(maxsize=256)
def _adapter(annotation: str) -> TypeAdapter[Any] | None:
    """Return what checks a value; None where the source does not tell: a name as a bound, a type of somebody's own."""
    try:
        return TypeAdapter(_type(ast.parse(annotation or "Any", mode="eval").body), config=_CONFIG)
    except (ValueError, TypeError, SyntaxError, PydanticUserError):
        return None


def _type(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    match node:
        case ast.Name(id=name) if name in _PLAIN:
            return _PLAIN[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            parts = (_type(left), _type(right))
            return Any if Any in parts else Union[parts]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            found = ast.literal_eval(values)
            return Literal[found]
        case ast.Subscript(value=ast.Name(id="list"), slice=part):
            return list[_type(part)]  # type: ignore[misc]  # a type made at run time
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *notes])):
            bounds = [note for note in notes if isinstance(note, ast.Call) and ast.unparse(note.func) == "Field"]
            words = {word.arg: ast.literal_eval(word.value) for note in bounds for word in note.keywords if word.arg}
            return Annotated[_type(kind), Field(**words)]
    return Any
