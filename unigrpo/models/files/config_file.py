"""What a config.json must say before a body is built of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from unigrpo.errors import UserError


def require_values(config: Mapping[str, Any], computed: Mapping[str, Collection[Any]]) -> None:
    """Refuse what the code does not compute.

    ``computed`` has by key the values that are computed; an absent key is the first of them.

    Raises:
        UserError: naming a key, its value and what is computed.
    """
    for key, values in computed.items():
        if key in config and config[key] not in values:
            raise UserError(
                f"config.json has {key} = {config[key]!r}; this model code computes {next(iter(values))!r} only"
            )


def require_sizes(config: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse a config without sizes that no model can be without.

    Raises:
        UserError: naming all that are absent.
    """
    missing = [key for key in names if not config.get(key)]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}: sizes of the model")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the tokens of the longest row by a config.json, or by the language model's part of it; None if silent."""
    parts = [config, *(config[key] for key in ("text_config", "phi") if isinstance(config.get(key), Mapping))]
    found = [part.get(key) for part in parts for key in ("max_sequence_length", "max_position_embeddings")]
    return next((length for length in found if isinstance(length, int) and length > 0), None)
