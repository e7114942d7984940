"""Bytes that are no rows, and values of another type in saved completions: named by file and line, in one line."""

from pathlib import Path

import pytest

from unigrpo.data.sources import load_prompts
from unigrpo.errors import UserError
from unigrpo.scoring.items import read_items
from unigrpo.settings.tasks import DataSettings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"is_truncated": "false"', "is_truncated 'false'; wanted true or false"),
        ('"is_truncated": 0', "is_truncated 0; wanted true or false"),
        ('"completion_ids": [true, 2]', "completion_ids [True, 2]; wanted a list of token ids"),
        ('"completion_ids": [-1]', "completion_ids [-1]; wanted a list of token ids"),
        ('"completion_ids": [' + "9" * 23 + "]", "wanted a list of token ids"),
        ('"image": false', "image False; give a path or a list of paths"),
        ('"image": {}', "image {}; give a path or a list of paths"),
        ('"image": ""', "is a folder; wanted a regular file"),
    ],
)
def test_score_refuses_what_is_of_another_type_by_file_and_line(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "completion": "c", ' + value + "}\n")
    with pytest.raises(UserError) as raised:
        [item.rollout() for item in read_items(path)]
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{\x00}\x00", ":1: not JSON: byte 0 (0xff) is not utf-8"),
        (b"\n\x1f\x8b\x08\x00", ":2: not JSON: byte 1 (0x8b) is not utf-8"),
        (b'{"prompt": "\xed\xa0\x80"}', ":1: not JSON: byte 12 (0xed) is not utf-8"),
        (b'{"prompt": "a\x00"}', ":1: not JSON: invalid control character (character 14)"),
        (b"\x00\x00\n", ":1: not JSON: expecting value (character 1)"),
        (b'{"prompt": "a"}\r{"prompt": "b"}', ":1: not JSON: extra data (character 17)"),
        (b'\xef\xbb\xbf\n{"prompt": "tor', ":2: not JSON: unterminated string (character 12)"),
        (b"\xef\xbb\xbf", " holds no prompts"),
        (b"\xef\xbb\xbf\r\n\r\n \t\n", " holds no prompts"),
    ],
)
def test_bytes_that_are_no_rows_are_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_prompts(DataSettings(jsonl=str(path)), "reason", "reason", "train", 0)
    assert str(raised.value).startswith(f"{path}{message}")
    assert "\n" not in str(raised.value)
