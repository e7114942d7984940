"""The tokenizer of checkpoints that ship Qwen2's vocab.json and merges.txt, no tokenizer.json, as Dream's do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.errors import UserError
from unigrpo.files import optional_file
from unigrpo.models.files.folders import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = "vocab.json"
MERGES = "merges.txt"
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
"""What is tokenised by itself: contractions, words with the sign before them, digits, signs, line ends, blanks."""


def has_byte_bpe(folder: Path) -> bool:
    """Return whether a folder holds both files."""
    return all(optional_file(folder / name) for name in (VOCABULARY, MERGES))


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise UserError(f"{path}, line {number}: {line!r} is no merge of two tokens; download the file again")
        merges.append((parts[0], parts[1]))
    return merges


def _added_tokens(folder: Path, config: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return id and flags of the tokens beyond the vocabulary, in the order of their ids."""
    listed = config.get("added_tokens_decoder")
    if listed:
        return [(int(index), listed[index]) for index in sorted(listed, key=int)]
    path = folder / "added_tokens.json"
    named = read_json(path) if optional_file(path) else {}
    return sorted(
        ((int(index), {"content": text, "special": True}) for text, index in named.items()), key=lambda e: e[0]
    )


def read_byte_bpe(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer: NFC, words as Qwen2 splits them, byte-level pairs.

    The folder holds vocab.json and merges.txt, and added_tokens.json where tokenizer_config.json does not list those.

    Raises:
        UserError: a merge that is no pair, or an added token whose id is taken or leaves a gap.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = read_json(folder / VOCABULARY)
    tokenizer = Tokenizer(models.BPE(vocabulary, _read_merges(folder / MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for index, entry in _added_tokens(folder, config):
        flags = {key: bool(entry[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in entry}
        is_special = bool(entry.get("special", False))
        token = AddedToken(str(entry["content"]), special=is_special, **({"normalized": False} | flags))
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([token])
        found = tokenizer.token_to_id(str(entry["content"]))
        if found != index:
            raise UserError(
                f"{folder} lists the added token {entry['content']!r} as {index}, and {VOCABULARY} leaves {found} for "
                "it; the files are not of one checkpoint"
            )
    return tokenizer
