"""Captions as a text encoder may read them: what spells a control token is text, and no caption is endless."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_CHARACTERS_A_TOKEN = 64
"""More than any token of a text encoder spells, so that what is cut off lies beyond the tokens that are read."""
_SHORTEST = 3
"""Characters of a control token; shorter ones (`!` is the padding of some) are signs that captions have as text."""


class Captions:
    """The captions of one tokenizer."""

    def __init__(self, controls: Iterable[str], num_tokens: int) -> None:
        """Take the texts of the control tokens, and how many tokens of a caption are read."""
        texts = sorted({text for text in controls if len(text) >= _SHORTEST}, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, texts)) or r"(?!)", re.IGNORECASE)
        self._length = num_tokens * _CHARACTERS_A_TOKEN

    def plain(self, caption: str) -> str:
        """Return a caption with a blank behind the first sign of what spells a control token.

        One that has none and no more characters than can be read comes back as it is; runs of blanks do not count. A
        lone surrogate, which no tokenizer takes, is a question mark.
        """
        caption = caption.encode("utf-8", "replace").decode()
        if len(caption) > self._length:
            caption = " ".join(caption.split())[: self._length]
        return self._controls.sub(lambda found: f"{found[0][0]} {found[0][1:]}", caption)


def captions_of(tokenizer: Any, num_tokens: int) -> Captions:
    """Return the captions of a tokenizer of transformers or of open_clip's own."""
    if hasattr(tokenizer, "added_tokens_decoder"):
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        return Captions([*added, *tokenizer.all_special_tokens], num_tokens)
    return Captions([tokenizer.decoder[number] for number in tokenizer.all_special_ids], num_tokens)
