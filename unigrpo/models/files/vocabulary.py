"""Token ids of a checkpoint: from its config, its tokenizer, the release's constants, or the caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.errors import UserError
from unigrpo.models.base import Vocabulary
from unigrpo.models.files.folders import read_json

if TYPE_CHECKING:
    from unigrpo.models.files.tokenizer import TextTokenizer

TOKEN_TEXT = {
    "mask": "<|mdm_mask|>",
    "eos": "<|endoftext|>",
    "bos": "<|startoftext|>",
    "soi": "<|soi|>",
    "eoi": "<|eoi|>",
    "t2i": "<|t2i|>",
    "mmu": "<|mmu|>",
    "ipad": "<|ipad|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "eot": "<|eot_id|>",
}
"""The tokens by which a tokenizer file names the ids."""

RELEASE_LENGTH = 126349
"""Tokens in the released LLaDA and MMaDA tokenizers, where the picture tokens reuse reserved, differently named ids."""

RELEASE_IDS = {
    "mask": 126336,
    "eos": 126081,
    "bos": 126080,
    "soi": 126084,
    "eoi": 126085,
    "t2i": 126088,
    "mmu": 126089,
    "ipad": 126093,
    "start_header": 126346,
    "end_header": 126347,
    "eot": 126348,
}
"""MMaDA's ids in its released tokenizer (training/prompting_utils.py of Gen-Verse/MMaDA)."""

SPECIAL = ("bos", "soi", "eoi", "t2i", "mmu", "ipad", "start_header", "end_header", "eot")
MARKERS = ("mask", "soi", "eoi", "t2i", "mmu", "start_header", "end_header", "eot")
"""Ids that mean one thing each; an end, a start and a padding may be one token."""
KNOWN = ("mask", "eos", "pad", *SPECIAL, "tokenizer_length", "image_offset")


def _overrides(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the caller's ids under our short names.

    Raises:
        UserError: a name that is not known, listing those that are.
    """
    short: dict[str, int] = {}
    for key, value in vocabulary.items():
        name = key.lower().removesuffix("_token_id").removesuffix("_id")
        if name not in KNOWN:
            raise UserError(
                f"vocabulary has no id called {key!r}; known are {', '.join(KNOWN)} (also with _token_id or _id)"
            )
        short[name] = int(value)
    return short


def stored_ends(folder: Path, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return every id that configs, or a folder's generation_config.json, call the end of a text, in that order.

    ``eos_token_id`` is an id or a list of them, also in the ``text_config`` of a model that reads pictures.

    Raises:
        UserError: something else.
    """
    path = folder / "generation_config.json"
    places = [*configs, read_json(path)] if path.is_file() else list(configs)
    places += [place["text_config"] for place in places if isinstance(place.get("text_config"), Mapping)]
    return tuple(dict.fromkeys(end for place in places for end in _ends(place.get("eos_token_id"))))


def _ends(given: Any) -> Iterator[int]:
    for end in given if isinstance(given, list) else [given]:
        if end is not None and (not isinstance(end, int) or isinstance(end, bool)):
            raise UserError(f"eos_token_id {given!r} of the checkpoint's files; wanted an id, or a list of ids")
        if end is not None:
            yield end


def _named_ids(
    config: Mapping[str, Any],
    tokenizer: TextTokenizer | None,
    given: Mapping[str, int],
    length: int | None,
    token_text: Mapping[str, str],
) -> dict[str, int]:
    """Return every id that can be found: the caller's first, then config.json's, the tokenizer's, the release's."""
    configured = {name: config.get(f"{name}_token_id") for name in ("mask", "eos", "pad", *SPECIAL)}
    configured["eos"] = next(_ends(configured["eos"]), None)
    ids: dict[str, int] = {}
    for name in ("mask", "eos", "pad", *SPECIAL):
        in_file = tokenizer.token_id(token_text[name]) if tokenizer and name in token_text else None
        release = RELEASE_IDS.get(name) if tokenizer and length == RELEASE_LENGTH else None
        found = (given.get(name), configured.get(name), in_file, release)
        value = next((candidate for candidate in found if candidate is not None), None)
        if value is not None:
            ids[name] = int(value)
        if name == "mask" and name not in given and in_file is not None and in_file != value:
            raise UserError(
                f"config.json says mask_token_id {value}, the tokenizer has {token_text[name]} at {in_file}; they are "
                "not of one checkpoint, or give load_policy(vocabulary={'mask_token_id': ...}) to decide"
            )
    ids.setdefault("pad", ids.get("eos", -1))
    return ids


def _check_markers(ids: Mapping[str, int], tokenizer: TextTokenizer | None, token_text: Mapping[str, str]) -> None:
    """Refuse a tokenizer that lost a marker: every id behind it has moved, those of the image codes, too."""
    missing = [f"{name} ({text})" for name, text in token_text.items() if name not in ids]
    if tokenizer is not None and missing:
        raise UserError(
            f"the tokenizer has no {', '.join(missing)}; it is not the checkpoint's own, or a file of it is damaged. "
            "Download it again, or give the ids: load_policy(vocabulary={...})"
        )
    roles: dict[int, str] = {}
    for name in MARKERS:
        if name in ids and roles.setdefault(ids[name], name) != name:
            raise UserError(
                f"id {ids[name]} would be both {roles[ids[name]]} and {name}; config.json and the tokenizer are not of "
                "one checkpoint, or give the ids: load_policy(vocabulary={...})"
            )


def resolve_vocabulary(
    config: Mapping[str, Any],
    *,
    size: int,
    tokenizer: TextTokenizer | None,
    overrides: Mapping[str, int] | None,
    codebook_size: int | None,
    token_text: Mapping[str, str] = TOKEN_TEXT,
    ends: tuple[int, ...] = (),
) -> Vocabulary:
    """Return the ids of a checkpoint.

    Image codes start at the tokenizer's length (126349 in the release), not at ``llm_vocab_size``, as the reference
    offsets them.

    Args:
        config: content of config.json.
        size: rows of the embedding.
        tokenizer: None when the folder has no tokenizer files.
        overrides: the caller's ids by name; they win.
        codebook_size: image codes of the family; None for a text-only one.
        token_text: the tokens by which the family's tokenizer file names the ids.
        ends: every id that the files call the end of a text; the end of a turn (eot) is one, too. Where the caller
            gives the EOS id, the files' are no ends.

    Raises:
        UserError: an unknown name, an id outside the embedding or of two roles, no mask or EOS id, a marker that the
            tokenizer of a family with pictures lacks, or codes that do not fit.
    """
    given = _overrides(overrides or {})
    length = given.get("tokenizer_length", len(tokenizer) if tokenizer else None)
    ids = _named_ids(config, tokenizer, given, length, token_text)
    for name in ("mask", "eos"):
        if name not in ids:
            raise UserError(
                f"neither config.json nor the tokenizer gives the {name} id; give load_policy("
                f"vocabulary={{'{name}_token_id': ...}})"
            )
    outside = {name: value for name, value in ids.items() if not 0 <= value < size}
    if outside:
        raise UserError(
            f"ids {outside} are not inside the embedding's 0:{size}; is the tokenizer of another checkpoint?"
        )
    _check_markers(ids, tokenizer, token_text if codebook_size is not None else {})
    offset = given.get("image_offset", config.get("image_offset", length))
    image_range = None
    if codebook_size is not None and offset is not None:
        image_range = (offset, offset + codebook_size)
        if image_range[1] > size:
            raise UserError(
                f"{codebook_size} image codes from id {offset} end at {image_range[1]}, but the embedding has {size} "
                "rows; is it another model's tokenizer? load_policy(vocabulary={'image_offset': ...}) sets the start"
            )
    others = (*(() if "eos" in given else ends), ids.get("eot", ids["eos"]))
    return Vocabulary(
        size=size,
        mask_token_id=ids["mask"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        text_range=(0, min(length if length is not None else (offset or size), size)),
        image_range=image_range,
        special={name: ids[name] for name in SPECIAL if name in ids},
        other_ends=tuple(end for end in others if end != ids["eos"] and 0 <= end < size),
    )
