"""The JSON files of a folder by dotted keys, and what else they must say for another depth or width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from unigrpo.errors import UserError

CONFIG = "config.json"
PHI_FOLDER = "phi_config"
ALIGNED = 8
"""Values in 16 bytes of bfloat16: rows of a grouped product must be a multiple."""
FULL = "full_attention"

Files = Mapping[str, dict[str, Any]]
"""Content by the file's path in the folder."""


def place_of(files: Files, key: str) -> tuple[dict[str, Any], str]:
    """Return the object that holds a key, and the key's last part.

    The first part of the key is a key of config.json, or else names a file ``PART.json`` or ``PART/config.json``.

    Raises:
        KeyError: there is no such place.
    """
    *parents, leaf = key.split(".")
    place: Any = files[CONFIG]
    if parents and parents[0] not in place:
        first, *parents = parents
        place = files[f"{first}.json" if f"{first}.json" in files else f"{first}/{CONFIG}"]
    for parent in parents:
        if not isinstance(place, dict):
            raise KeyError(key)
        place = place[parent]
    if not isinstance(place, dict):
        raise KeyError(key)
    return place, leaf


def get_value(files: Files, key: str) -> Any:
    """Return a key's value.

    Raises:
        KeyError: there is none.
    """
    place, leaf = place_of(files, key)
    return place[leaf]


def set_value(files: Files, key: str, value: Any) -> None:
    """Set a key's value, in a place that is there."""
    place, leaf = place_of(files, key)
    place[leaf] = value


def require_keys(family: str, files: Files, keys: Collection[str]) -> None:
    """Refuse keys that are not there.

    Raises:
        UserError: naming them and the nearest.
    """
    unknown = [key for key in keys if not _is_there(files, key)]
    if unknown:
        names = [f"{name.removesuffix('/' + CONFIG)}.{key}" for name in files if name != CONFIG for key in files[name]]
        near = get_close_matches(unknown[0], [*files[CONFIG], *names], n=3) or sorted(files[CONFIG])
        raise UserError(f"config.json of {family} has no {', '.join(unknown)}; it has {', '.join(near)}")


def _is_there(files: Files, key: str) -> bool:
    try:
        get_value(files, key)
    except KeyError:
        return False
    return True


def require_width(family: str, files: Files, width_key: str) -> None:
    """Refuse a width that experts cannot have, or that does not divide into heads, even ones where they are rotated.

    Raises:
        UserError: saying what it must be a multiple of.
    """
    place, leaf = place_of(files, width_key)
    if place.get("head_dim"):  # the heads' width is their own
        step = ALIGNED if place.get("num_experts") else 1
        if place[leaf] % step:
            raise UserError(
                f"width {place[leaf]} of {family} is no multiple of {step}: its experts' products need that"
            )
        return
    heads_key = "n_heads" if "n_heads" in place else "num_attention_heads"
    is_rotated = any("rope" in key for key in place)
    even = round(2 / (place.get("partial_rotary_factor") or 1)) if is_rotated else 1
    step = place[heads_key] * even
    if place[leaf] % step:
        heads = f"{place[heads_key]} heads ({heads_key})" + (f", each a multiple of {even} wide" if is_rotated else "")
        raise UserError(f"width {place[leaf]} of {family} is no multiple of {step}: it has {heads}")


def fit(files: Files, given: Collection[str]) -> None:
    """Make the values that stand for single layers, or point to another file, follow from the others, in place.

    The keys that somebody asked for (``given``) stay.
    """
    config = files[CONFIG]
    if "moe_layer_freq" in config and "moe_layer_freq" not in given:
        config["moe_layer_freq"] = [1] * config["num_hidden_layers"]
    text = config.get("text_config", {})
    if "layer_types" in text and "text_config.layer_types" not in given:
        text["layer_types"] = _repeated(text["layer_types"], text["num_hidden_layers"])
    if "per_layer_config" in text and "text_config.per_layer_config" not in given:
        of_full = next(iter(text["per_layer_config"].values()))
        full = [layer for layer, kind in enumerate(text["layer_types"]) if kind == FULL]
        text["per_layer_config"] = {str(layer): dict(of_full) for layer in full}
    if "llm_model_path" not in given and any(key.startswith(f"{PHI_FOLDER}.") for key in given):
        config["llm_model_path"] = PHI_FOLDER  # a released name would win over the sizes in that folder


def _repeated(layer_types: Sequence[str], num_layers: int) -> list[str]:
    """Repeat the pattern that ends with the first full layer; the last layer is full, as transformers has it."""
    pattern = list(layer_types[: list(layer_types).index(FULL) + 1])
    return [*(pattern * num_layers)[: num_layers - 1], FULL]
