"""A recipe's text: YAML without tags, duplicate keys or bombs, and dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from unigrpo.documents import TOO_DEEP, is_deep
from unigrpo.errors import RecipeError
from unigrpo.files import usable
from unigrpo.recipe.messages import annotation_at, is_choice
from unigrpo.sanitized import short_repr

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
"""Values of a document once its aliases are written out."""

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$")


class _Loader(yaml.SafeLoader):
    """Safe YAML of JSON's values, as of YAML 1.2: 1e-5 is a number, a date is text; a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    problem = f"the key {key_node.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_mapping(path: Path, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, which errors call ``source``.

    Raises:
        RecipeError: if the file is too large, is not UTF-8 or not YAML, has a key twice, or holds no mapping.
    """
    with usable(path):
        num_bytes = path.stat().st_size
        content = path.read_bytes() if num_bytes <= MAX_BYTES else b""
    if num_bytes > MAX_BYTES:
        raise RecipeError(source, [f"{num_bytes:,} bytes; a recipe has at most {MAX_BYTES:,}"])
    try:
        value = parse(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(source, [f"not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except yaml.YAMLError as error:
        raise RecipeError(source, [_yaml_problem(error)]) from error
    if not isinstance(value, dict):
        raise RecipeError(source, [f"holds {_kind(value)}; wanted a mapping, such as `name: my-run`"])
    if _count_nodes(value, MAX_NODES) > MAX_NODES:
        raise RecipeError(source, [f"more than {MAX_NODES:,} values once its aliases are written out"])
    return value


def parse(text: str) -> Any:
    """Return the value of one YAML document, of plain types only.

    Raises:
        yaml.YAMLError: if it is not YAML, uses a tag, repeats a key or is nested too deep.
    """
    loader = _Loader(text)
    try:
        value = loader.get_single_data()
    except RecursionError:
        raise yaml.YAMLError(TOO_DEEP) from None
    except ValueError:
        raise yaml.YAMLError("a number of too many digits, or of none; write it as text, in quotes") from None
    finally:
        loader.dispose()
    if is_deep(value):
        raise yaml.YAMLError(TOO_DEEP)
    return value


def apply_overrides(values: Mapping[str, Any], overrides: list[str], model: type[BaseModel]) -> dict[str, Any]:
    """Return the values with each ``a.b=value`` set; the values themselves stay as they were.

    Args:
        values: a recipe's, not yet validated.
        overrides: ``key.path=value``, the value as YAML.
        model: the settings that the values are of: where they have a choice, a bare name becomes ``{use: NAME}`` before
            a parameter is set beside it.

    Raises:
        RecipeError: if an override has no ``=``, is not YAML or goes through something that has no keys.
    """
    result = _copy(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.split(".")
        if not equals or not all(keys):
            raise RecipeError(f"override {short_repr(override)}", ["wanted key.path=value, such as learner.lr=3e-6"])
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"override {short_repr(override)}", [_yaml_problem(error)]) from error
        section, place = result, []
        while len(keys) > 1:
            # A name may have dots in it, as a task's may: the longest that is there.
            count = next((n for n in range(len(keys) - 1, 1, -1) if ".".join(keys[:n]) in section), 1)
            parent, key, keys = section, ".".join(keys[:count]), keys[count:]
            place.append(key)
            section = parent.setdefault(key, {})
            if isinstance(section, str) and is_choice(annotation_at(model, place)):
                section = parent[key] = {"use": section}
            if not isinstance(section, dict):
                path = dotted.removesuffix("." + ".".join(keys))
                raise RecipeError(
                    f"override {short_repr(override)}", [f"{path} is {_kind(section)}, which has no keys"]
                )
        section[keys[0]] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _count_nodes(value: Any, limit: int) -> int:
    """Count values with aliases written out, stopping soon after the limit."""
    count, pending = 0, [value]
    while pending and count <= limit:
        item = pending.pop()
        count += 1
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return count


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"
    return " ".join(str(error).split())
