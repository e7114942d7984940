"""Text of others as it may stand on a terminal: what would steer it, or cannot be encoded, becomes an escape."""

from __future__ import annotations

import io
import re
from typing import TextIO

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]|\r(?!\n)"
)
"""Control characters, halves of characters, and what turns the direction of writing or begins a line anew."""
_LONG_WORD = re.compile(r"(\S{160})\S{120,}(\S{40})")


def sanitized(text: str) -> str:
    """Return text with what may not reach a terminal (``_UNSAFE``) as escapes; line ends and tabs stay."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def short_repr(value: object) -> str:
    """Return the ``repr`` of a value for an error message: its start, where it is longer than 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_short_words(text: str) -> str:
    """Return a message with the middle left out of each word of 320 characters or more: a name, a path or a value."""
    return _LONG_WORD.sub(r"\1...\2", text)


class SanitizedStream(io.TextIOWrapper):
    """A text stream that sanitizes what it writes."""

    def write(self, text: str) -> int:
        """Write; return the number of characters given."""
        super().write(sanitized(text))
        return len(text)


def sanitized_stream(stream: TextIO) -> SanitizedStream:
    """Return a stream that writes sanitized text to where another one writes, which must not be closed meanwhile."""
    stream.flush()
    return SanitizedStream(stream.buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
