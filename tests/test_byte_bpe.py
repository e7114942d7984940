"""The tokenizer made from vocab.json and merges.txt, against transformers' own Qwen2 tokenizer."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from unigrpo.errors import UserError
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.types import Message

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "' s", "Ã ©", "Ċ Ċ", "1 2"]
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
TEXTS = [
    "hello world's",
    "Hello  HELLO'S\n\n  12 123, x=4!\r\n",
    "cafe\u0301 caf\u00e9",
    "数学 🦊 x²\t\u0000",
    "<|im_start|>user\nhello<|im_end|><|mask|><|mask|> world",
    "   trailing   ",
    "",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    added = {str(len(tokens) + n): {"content": text, "special": True} for n, text in enumerate(ADDED)}
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    config = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(folder: Path, text: str) -> None:
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    vocabulary = json.loads((folder / "vocab.json").read_text())
    pairs = [tuple(merge.split(" ")) for merge in MERGES]
    reference = Qwen2Tokenizer(vocab=vocabulary, merges=pairs)
    reference.add_special_tokens({"additional_special_tokens": ADDED[1:]})
    ours = TextTokenizer.from_folder(folder)
    assert ours.encode_markup(text) == reference.encode(text, add_special_tokens=False)
    assert ours.encode(text) == reference.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours.decode(ours.encode_markup(text)) == reference.decode(reference.encode(text), skip_special_tokens=True)
    assert ours.decode(ours.encode(text)) == unicodedata.normalize("NFC", text)


def test_added_tokens_have_the_ids_of_the_config(folder: Path) -> None:
    tokenizer = TextTokenizer.from_folder(folder)
    assert [tokenizer.token_id(token) for token in ADDED] == [266, 267, 268, 269]
    assert len(tokenizer) == 270


def test_chat_template_is_read_as_ever(folder: Path) -> None:
    ids = TextTokenizer.from_folder(folder).encode_chat((Message(role="user", text="hello"),))
    assert ids[0] == 267
    assert ids[-1] == 268


def test_added_tokens_may_stand_in_their_own_file(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "added_tokens.json").write_text(json.dumps({"<|mask|>": 267, "<|endoftext|>": 266}))
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.encode_markup("<|mask|>hello") == [267, tokenizer.token_id("hello")]


def test_files_of_two_checkpoints_are_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "added_tokens.json").write_text(json.dumps({"<|mask|>": 151666}))
    with pytest.raises(ValueError, match=r"'<\|mask\|>' as 151666, and vocab.json leaves 266"):
        TextTokenizer.from_folder(folder)


def test_broken_merge_is_named_by_its_line(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nhel\n")
    with pytest.raises(ValueError, match="line 3: 'hel' is no merge"):
        TextTokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b'{"a": "x"}', r"vocab\.json has 'a' as 'x'"),
        ("vocab.json", b'{"a": -1}', r"vocab\.json has 'a' as -1"),
        ("vocab.json", b"{}", r"vocab\.json has no tokens"),
        ("vocab.json", b"[" * 50_000, r"vocab\.json: more than 100"),
        ("merges.txt", b"\xff\xfe", r"merges\.txt is not UTF-8"),
        ("merges.txt", b"no where\n", r"merges\.txt merges 'no', which vocab\.json lacks"),
        ("added_tokens.json", b'{"<x>": "y"}', r"added_tokens\.json: the added token 'y'"),
        ("added_tokens.json", b'{"<x>": null}', r"added_tokens\.json: the added token None"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": ["a"]}', r"tokenizer_config\.json: the added token"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"3": {}}}', "the added token '3': {}"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"3": null}}', "the added token '3': None"),
    ],
)
def test_a_file_of_another_structure_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    for file, text in (("vocab.json", b'{"a": 0, "b": 1, "ab": 2}'), ("merges.txt", b"a b\n"), (name, content)):
        (tmp_path / file).write_bytes(text)
    with pytest.raises(UserError, match=message):
        TextTokenizer.from_folder(tmp_path)
