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
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); download it again") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise UserError(f"{path}, line {number}: {line!r} is no merge of two tokens; download the file again")
        merges.append((parts[0], parts[1]))
    return merges


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_json(path)
    wrong = next((text for text, index in vocabulary.items() if not _is_id(index)), None)
    if wrong is not None or not vocabulary:
        given = "no tokens" if wrong is None else f"{wrong!r} as {vocabulary[wrong]!r}"
        raise UserError(f"{path} has {given}; wanted tokens with their ids; download it again")
    return vocabulary


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _added_tokens(folder: Path, config: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return id and flags of the tokens beyond the vocabulary, in the order of their ids.

    Raises:
        UserError: naming the file whose list is none of ids and tokens.
    """
    path, listed = folder / "tokenizer_config.json", config.get("added_tokens_decoder")
    if not listed:
        path = folder / "added_tokens.json"
        named = read_json(path) if optional_file(path) else {}
        listed = {index: {"content": text, "special": True} for text, index in named.items()}
    found: dict[int, dict[str, Any]] = {}
    for index, entry in listed.items() if isinstance(listed, dict) else [(listed, None)]:
        number = int(index) if isinstance(index, str) and index.isdecimal() and len(index) < 10 else index
        if not _is_id(number) or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise UserError(
                f"{path}: the added token {index!r}: {entry!r}"[:200] + "; wanted an id and a token; download it again"
            )
        found[number] = entry
    return sorted(found.items(), key=lambda item: item[0])


def read_byte_bpe(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer: NFC, words as Qwen2 splits them, byte-level pairs.

    The folder holds vocab.json and merges.txt, and added_tokens.json where tokenizer_config.json does not list those.

    Raises:
        UserError: a merge that is no pair or of unknown tokens, an id that is none, or an added token whose id is
            taken or leaves a gap.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary, merges = _read_vocabulary(folder / VOCABULARY), _read_merges(folder / MERGES)
    unknown = [part for pair in merges for part in (*pair, "".join(pair)) if part not in vocabulary]
    if unknown:
        raise UserError(f"{folder / MERGES} merges {unknown[0]!r}, which {VOCABULARY} lacks; download both again")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
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
