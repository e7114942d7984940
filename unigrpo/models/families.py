"""Which class reads which checkpoint, by what the classes say of themselves in source: torch is not imported.

A family is a file of `unigrpo.models.policies`: its one public class names its model types, architectures and abilities
(`unigrpo.models.text_policy.TextPolicy`). A file that is put there is a family; a user's is named by a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from unigrpo.errors import UserError
from unigrpo.models.base import Abilities
from unigrpo.plugin import PluginError, choice, facts, known_choices

if TYPE_CHECKING:
    from unigrpo.models.text_policy import TextPolicy

FOLDER = "unigrpo.models.policies"
"""The package whose files are the families."""

NOT_READ = {
    "LLaDAForMultiModalGeneration": "Lumina-DiMOO and MMaDA-Parallel-A, whose pictures have tokens and ids of their own"
}
"""Architectures that write a known model type although they are something else."""

FOREIGN_TYPES = ("llama", "qwen2", "qwen3", "gpt2")
"""Model types of other families, whose layers differ; under these no known architecture is believed."""


def known_families() -> dict[str, dict[str, Any]]:
    """Return what the class of every family says of itself, by the family's file."""
    return _read(tuple((name, file.stat().st_mtime_ns) for name, file in known_choices(FOLDER).items()))


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[str, int], ...]) -> dict[str, dict[str, Any]]:
    return {name: facts(name, FOLDER) for name, _ in files}


def family_name(config: Mapping[str, Any]) -> str:
    """Return the family that a config.json asks for: a file of the folder.

    Raises:
        UserError: a family that is not known here, or model type and architecture of two families.
    """
    model_type = config.get("model_type")
    architectures = [str(name) for name in config.get("architectures") or ()]
    strange = [f"{name} ({NOT_READ[name]})" for name in architectures if name in NOT_READ]
    if strange:
        raise UserError(f"config.json is of {strange[0]}, which is not read here")
    classes = [*architectures, *([config["_class_name"]] if "_class_name" in config else [])]
    families = known_families()
    by_class = {name for name, said in families.items() if _names(said.get("architectures", ()), classes)}
    if any(model_type in families[name].get("borrowed_types", ()) for name in by_class):
        model_type = None
    by_type = {name for name, said in families.items() if model_type in said.get("model_types", ())}
    found = by_class | by_type
    if len(found) > 1 or (found and model_type in FOREIGN_TYPES):
        raise UserError(
            f"config.json contradicts itself: model_type {model_type!r}, architectures {classes}; set model_type to "
            "the family of the architecture"
        )
    if found:
        return found.pop()
    known = [
        kind for said in families.values() for key in ("model_types", "architectures") for kind in said.get(key, ())
    ]
    raise UserError(
        f"config.json names the family {[model_type, *classes]}; known here are {', '.join(known)}; name your own as "
        "policy.use"
    )


def _names(patterns: tuple[str, ...], classes: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in classes)


def family_named_by(hub_id: str) -> str | None:
    """Return the family under whose names a checkpoint on the hub is published, as far as its name tells."""
    names = {part: name for name, said in known_families().items() for part in said.get("hub_names", ())}
    found = [part for part in names if part in hub_id.lower()]
    return names[max(found, key=len)] if found else None


def find_family(config: Mapping[str, Any], use: str | None = None) -> str | None:
    """Return the family of a config.json, or the one that a recipe names; None where there is not one and one only."""
    try:
        return use or family_name(config)
    except ValueError:
        return None


def family_facts(family: str) -> dict[str, Any]:
    """Return what the class of a family says of itself.

    Raises:
        PluginError: there is no such family or file.
    """
    known = known_families()
    return known[family] if family in known else facts(family, FOLDER)


def abilities(family: str) -> Abilities:
    """Return what a family can do, as its own class says it in literals; the defaults for what it does not say."""
    return Abilities(**family_facts(family).get("abilities", {}))


def policy_family(config: Mapping[str, Any], use: str | None = None) -> type[TextPolicy]:
    """Return the policy class that a config.json asks for, or the one that a recipe names.

    Raises:
        UserError: a family that is not known here, or model type and architecture of two families.
        PluginError: there is no such family or file.
    """
    found = choice(use or family_name(config), FOLDER)
    if not hasattr(found, "complete_config"):
        raise PluginError(f"{use} is no policy; derive it from unigrpo.models.text_policy.TextPolicy")
    return cast("type[TextPolicy]", found)
