"""What may not reach a terminal becomes an escape."""

import io

from unigrpo.sanitized import sanitized, sanitized_stream


def test_control_characters_and_lone_surrogates_become_escapes_and_nothing_else_does() -> None:
    assert sanitized("safe\rforged \u202eabc\u2066\u2028") == r"safe\rforged \u202eabc\u2066\u2028"
    assert sanitized("a line\r\n") == "a line\r\n"
    assert sanitized("\x1b[2J\x07 \x9b\ud800\udfff") == "\\x1b[2J\\x07 \\x9b\\ud800\\udfff"
    plain = "é 😀 \t\r\n\\x1b"
    assert sanitized(plain) == plain


def test_a_sanitized_stream_writes_escapes_where_the_other_one_wrote() -> None:
    buffer = io.BytesIO()
    other = io.TextIOWrapper(buffer, encoding="ascii")
    stream = sanitized_stream(other)
    assert stream.write("\x1bé\ud800\n") == 4
    assert buffer.getvalue() == "\\x1bé\\ud800\n".encode()
