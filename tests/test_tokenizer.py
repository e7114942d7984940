"""Text to ids and back, and the chat template, against hand-written answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from unigrpo.errors import UserError
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.types import Message

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}[assistant]"


def write_tokenizer(folder: Path, config: dict[str, object]) -> Path:
    """Letters a..e are 0..4, bytes follow, then <s> and </s>."""
    letters = {letter: index for index, letter in enumerate("abcde")}
    vocabulary = letters | {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path, {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "</s>"})


def test_letters_have_their_ids_and_nothing_is_added(folder: Path) -> None:
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.encode("dab") == [3, 0, 1]
    assert tokenizer.encode_markup("<s>a</s>") == [261, 0, 262]
    assert tokenizer.encode("<s>a</s>") == [5 + byte for byte in b"<s>"] + [0] + [5 + byte for byte in b"</s>"]
    assert tokenizer.encode("") == []
    assert len(tokenizer) == 263
    assert tokenizer.token_id("</s>") == 262
    assert tokenizer.token_id("<|soi|>") is None


@pytest.mark.parametrize("text", ["abc", "naïve Zürich", "数学 \n\t x²", "🦊👩‍👩‍👧", "\u0000\u200f"])
def test_any_text_round_trips_through_bytes(folder: Path, text: str) -> None:
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_skips_special_tokens_and_ids_that_are_no_token(folder: Path) -> None:
    assert TextTokenizer.from_folder(folder).decode([261, 0, 1, 262, 263, 9999]) == "ab"


def test_chat_template_ends_with_the_assistant(folder: Path) -> None:
    tokenizer = TextTokenizer.from_folder(folder)
    messages = (Message(role="system", text="a"), Message(role="user", text="  b "))
    assert tokenizer.render_chat(messages) == "<s>[system]a[user]b[assistant]"
    assert tokenizer.encode_chat(messages[1:])[:2] == [261, 5 + ord("[")]


def test_template_file_wins_over_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    assert TextTokenizer.from_folder(folder).render_chat((Message(role="user", text="c"),)) == "c</s>"


def test_default_is_taken_from_a_list_of_templates(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    tokenizer = TextTokenizer.from_folder(write_tokenizer(tmp_path, {"chat_template": named}))
    assert tokenizer.render_chat((Message(role="user", text="c"),)) == "d"


def test_template_cannot_reach_into_python(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match=r"chat_template\.jinja: the chat template does what the sandbox forbids"):
        TextTokenizer.from_folder(folder).render_chat((Message(role="user", text="c"),))


def test_template_that_refuses_says_why(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")
    with pytest.raises(ValueError, match="no system turn"):
        TextTokenizer.from_folder(folder).render_chat((Message(role="user", text="c"),))


def test_missing_files_say_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"load_policy\(tokenizer=FOLDER\)"):
        TextTokenizer.from_folder(tmp_path)
    tokenizer = TextTokenizer.from_folder(write_tokenizer(tmp_path, {}))
    with pytest.raises(ValueError, match=r"chat_template\.jinja"):
        tokenizer.encode_chat((Message(role="user", text="c"),))


@pytest.mark.parametrize(("text", "message"), [("{}", "has no `model`"), ("{", "not JSON"), ("[]", "a JSON list")])
def test_file_that_is_no_tokenizer_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=rf"tokenizer\.json.*{message}"):
        TextTokenizer.from_folder(tmp_path)


def test_file_that_is_damaged_deep_inside_is_named(folder: Path) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"pre_tokenizer": {"type": "Nonesuch"}}))
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer .*download it again"):
        TextTokenizer.from_folder(folder)
