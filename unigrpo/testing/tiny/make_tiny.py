"""Write a random checkpoint of any family and any size, in the released layout, with a tokenizer.

For tests, benchmarks and dry runs at the released sizes. The weights of a tensor depend on the seed and its name alone,
so neither the order of the tensors nor the cut into shards changes them; no more than one shard is in memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.errors import UserError
from unigrpo.files import new_folder
from unigrpo.testing.tiny.config_files import CONFIG, fit, get_value, require_keys, require_width, set_value
from unigrpo.testing.tiny.layouts import Layout, find_layout

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

SHARD_BYTES = 5_000_000_000
"""Largest shard of the released checkpoints."""
EMBEDDING = re.compile(r"(wte|embed_tokens|word_embeddings|tok_embeddings)\.weight$")
GAINS = ("weight", "scale", "scalar")
"""How vectors end that multiply, and so are near one; all others are near zero."""


def make_tiny(
    family: str,
    out: Path,
    *,
    release: str | None = None,
    changes: Mapping[str, Any] | None = None,
    layers: int | None = None,
    width: int | None = None,
    vocabulary: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the checkpoint's folder and return it.

    Args:
        family: the short name of a layout, or a user's ``path/to/file.py:Class`` that has one.
        out: a new folder.
        release: sizes of a released checkpoint, such as ``8b``.
        changes: values of config.json by their published keys, dotted where nested or in another file; they win. What
            must be said of every layer follows from their number, unless it is given.
        layers: number of layers.
        width: of the hidden states.
        vocabulary: rows of the embedding.
        dtype: of the files, float32 or bfloat16.
        seed: of the weights.
        shard_bytes: a file holds at most this much, or one tensor.

    Raises:
        UserError: a family, release or key that is not known, a width that does not divide into the heads, sizes that
            the family refuses, a vocabulary too small for the tokenizer, or a folder that holds something.
    """
    entry = find_layout(family)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is not written; wanted float32 or bfloat16")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty; name a new folder or delete it first")
    sizes = {entry.layers_key: layers, entry.width_key: width, **dict.fromkeys(entry.vocabulary_keys, vocabulary)}
    given = {key: value for key, value in sizes.items() if value is not None} | dict(changes or {})
    tokenizer = _tokenizer(entry)
    files = json_files(family, release=release, changes=given, tokenizer=tokenizer)
    files[CONFIG]["torch_dtype"] = dtype
    with new_folder(out) as whole:
        for name, content in files.items():
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _write_tokenizer(whole, entry, tokenizer)
        _write_weights(whole, entry, files[CONFIG], dtype, seed, shard_bytes)
    return out


def _tokenizer(entry: Layout) -> Tokenizer:
    from unigrpo.quickstart.makers.policy import build_tokenizer

    return build_tokenizer(entry.special_tokens)


def json_files(
    family: str,
    *,
    release: str | None = None,
    changes: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> dict[str, dict[str, Any]]:
    """Return config.json and its like by their paths: the entry's values, the release's, the changes, then the ids.

    Raises:
        UserError: as `make_tiny` does.
    """
    entry, given = find_layout(family), changes or {}
    tokenizer = tokenizer or _tokenizer(entry)
    if release is not None and release not in entry.releases:
        raise UserError(f"{family} has no release {release!r}; known are {', '.join(entry.releases) or 'none'}")
    given_files = {CONFIG: entry.config, **entry.files}
    files = {name: copy.deepcopy(dict(content)) for name, content in given_files.items()}
    config = files[CONFIG]
    length = tokenizer.get_vocab_size(with_added_tokens=True)
    text_rows = length if entry.rounding == 1 else -(-(length + 1) // entry.rounding) * entry.rounding
    if entry.text_rows_key is not None:
        set_value(files, entry.text_rows_key, text_rows)
    for key in entry.vocabulary_keys:
        set_value(files, key, text_rows + entry.codebook_size + entry.extra_rows)
    require_keys(family, files, given)
    for key, value in {**(entry.releases[release] if release else {}), **given}.items():
        set_value(files, key, value)
        if value is None and key.startswith("_"):
            config.pop(key)
    fit(files, given)
    if entry.width_key in given:
        require_width(family, files, entry.width_key)
    sizes = {key: get_value(files, key) for key in entry.vocabulary_keys}
    short = {key: size for key, size in sizes.items() if size < length}
    if short:
        raise UserError(f"config.json has {short}, but the tokenizer alone has {length} tokens; give more rows")
    for place, token in entry.ids.items():
        set_value(files, place, tokenizer.token_to_id(token))
    return files


def _write_tokenizer(out: Path, entry: Layout, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "bos_token": entry.bos_token,
        "eos_token": entry.eos_token,
        "pad_token": entry.eos_token,
        **({"mask_token": entry.mask_token} if entry.mask_token else {}),
        "additional_special_tokens": list(entry.special_tokens),
        "chat_template": entry.chat_template,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(
    out: Path, entry: Layout, config: Mapping[str, Any], dtype: str, seed: int, shard_bytes: int
) -> None:
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from unigrpo.models.files.weights import write_tensors
    from unigrpo.models.loading import DTYPES, stored_shapes

    try:
        shapes = stored_shapes(config, out, entry.family)
    except StrictDataclassError as error:  # of transformers' own configurations; it is no ValueError
        raise UserError(f"config.json does not fit together: {' '.join(str(error).split())}") from error
    is_tied = not any(name.endswith(("lm_head.weight", "transformer.ff_out.weight")) for name in shapes)
    shards = list(_shards(shapes, torch.finfo(DTYPES[dtype]).bits // 8, shard_bytes))
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file_name, shard in zip(names, shards, strict=True):
        tensors = {name: _drawn(name, shapes[name], seed, is_tied).to(DTYPES[dtype]) for name in shard}
        write_tensors(tensors, out / file_name, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(math.prod(shape) for shape in shapes.values()) * torch.finfo(DTYPES[dtype]).bits // 8
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = out / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(shapes: Mapping[str, tuple[int, ...]], num_bytes: int, shard_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * num_bytes
        if shard and filled + size > shard_bytes:
            yield shard
            shard, filled = [], 0
        shard.append(name)
        filled += size
    yield shard


def _drawn(name: str, shape: tuple[int, ...], seed: int, is_tied: bool) -> torch.Tensor:
    """Return a float32 tensor: matrices keep a variance, embeddings have one of 1, gains are near 1, biases near 0."""
    import torch

    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    drawn = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return drawn.mul_(0.1).add_(1.0 if name.endswith(GAINS) else 0.0)
    is_embedding = EMBEDDING.search(name) is not None and not is_tied
    return drawn if is_embedding else drawn.mul_(math.prod(shape[1:]) ** -0.5)
