"""What a random checkpoint of a family is made of, as the family's own class says it (``layouts``, in YAML).

A family has one layout or several, by short names. Values are the released ones, but for sizes and ids. A layout may be
``like`` another: it takes what it does not say from there, key by key in ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unigrpo.errors import UserError
from unigrpo.models.families import FOLDER, known_families
from unigrpo.plugin import facts, nearest
from unigrpo.recipe.text import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One released layout."""

    family: str
    """What loads it: a file of `unigrpo.models.policies`, or a user's ``path/to/file.py:Class``."""
    title: str
    checkpoints: str
    """Which were released."""
    golden: str | None = None
    """Folder of tests/golden that holds what the family's reference implementation gives."""
    compared_with: str = ""
    """Where there is no golden: what else the arithmetic is compared with."""
    config: Mapping[str, Any]
    """config.json without ids and vocabulary sizes, at tiny sizes."""
    ids: Mapping[str, str]
    """Keys (see `config_files.place_of`) and the token whose id stands there."""
    special_tokens: tuple[str, ...]
    """The tokenizer's special tokens, in order."""
    chat_template: str
    bos_token: str
    eos_token: str
    mask_token: str | None = None
    """Named in tokenizer_config.json, where the family finds its ids there."""
    vocabulary_keys: tuple[str, ...] = ("vocab_size",)
    """Keys of config.json that hold the rows of the embedding."""
    layers_key: str = "num_hidden_layers"
    width_key: str = "hidden_size"
    text_rows_key: str | None = None
    """Key of config.json that holds the rows of the embedding that come before the image codes."""
    rounding: int = 32
    """The text's rows are a multiple of this."""
    codebook_size: int = 0
    """Image codes behind the text's rows."""
    extra_rows: int = 0
    """Rows besides: special tokens that the tokenizer does not hold, the mask."""
    releases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of config.json at released sizes, by the name of the size; dotted where nested."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further JSON files of the folder."""


def layouts(use: str | None = None) -> dict[str, Layout]:
    """Return the layouts of every family by their short names, and those of a user's ``path/to/file.py:Class``."""
    texts = {name: said.get("layouts", "") for name, said in known_families().items()}
    return _read(texts if use is None else texts | {use: facts(use, FOLDER).get("layouts", "")})


def find_layout(name: str) -> Layout:
    """Return the layout of a short name, or the first one of a user's ``path/to/file.py:Class``.

    Raises:
        UserError: there is none.
    """
    known = layouts(name if ":" in name else None)
    own = next((layout for layout in known.values() if layout.family == name), None) if ":" in name else known.get(name)
    if own is None:
        hint = nearest(name, known)
        raise UserError(f"there is no family {name!r} with a layout{hint}; wanted one of {', '.join(known)}")
    return own


def _read(texts: Mapping[str, str]) -> dict[str, Layout]:
    given = {
        short: {"family": family, **content}
        for family, text in texts.items()
        for short, content in (parse(text) or {}).items()
    }
    made = {short: _filled(short, given) for short in given}
    lists = ("special_tokens", "vocabulary_keys")
    return {
        short: Layout(**content | {key: tuple(content[key]) for key in lists if key in content})
        for short, content in made.items()
    }


def _filled(short: str, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a layout's values with those of the one that it is like."""
    own = dict(given[short])
    if "like" not in own:
        return own
    other = _filled(own.pop("like"), given)
    return other | own | {"config": other["config"] | own.get("config", {})}
