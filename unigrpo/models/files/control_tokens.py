"""What no text of a user's may become: the control tokens of a tokenizer, and texts read without them.

A control token is one that the tokenizer marks as special, or one whose id the vocabulary reserves (mask, ends,
padding, start, headers, picture marks), marked or not. Other added tokens, such as the tags of a thought, are text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MARK = "\U0010fffd"
"""A private character around the number of a piece that is hidden from a chat template."""
GAP = "\U0010fffc"
"""Where the text of a chat is cut in two: a character of its own, which no text between two pieces can spell."""


class ControlTokens:
    """The control tokens of one tokenizer, and its twin that does not know them."""

    def __init__(self, tokenizer: Tokenizer, reserved: Iterable[int] = ()) -> None:
        """Take what the tokenizer marks as special, and the reserved ids that it has a text for."""
        self._tokenizer = tokenizer
        self._twin: Tokenizer | None = None
        model = tokenizer.model
        unknown: str | None = getattr(model, "unk_token", None)
        added = tokenizer.get_added_tokens_decoder()
        texts = {token.content: number for number, token in added.items() if token.special}
        texts |= {text: number for number in reserved if (text := tokenizer.id_to_token(number))}
        self.unknown = unknown if unknown in texts else None
        """The text of the token for what has none, which any text may become."""
        self.texts = {text: number for text, number in texts.items() if text != unknown}
        texts = self.texts
        self.ids = frozenset(texts.values())
        ordered = "|".join(sorted(map(re.escape, texts), key=len, reverse=True)) or r"(?!)"
        self._hidden_pattern = re.compile(f"{ordered}|{MARK}|{GAP}")
        self._token_pattern = re.compile(f"{MARK}[0-9]+{MARK}|({ordered})")
        self._starts = {text[:end] for text in texts for end in range(1, len(text))}
        self._ends = {text[start:] for text in texts for start in range(1, len(text))}
        self._longest = max(map(len, texts), default=1)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is a control token, however it is spelled."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self.ids.isdisjoint(ids) and (self.unknown is None or self.unknown not in text):
            return ids
        if self._twin is None:
            self._twin = _twin(self._tokenizer, self.texts)
        found: list[int] = self._twin.encode(text, add_special_tokens=False).ids
        return found

    def hide(self, text: str, hidden: list[str]) -> str:
        """Return a text with numbers in place of the control tokens that are spelled in it; they join ``hidden``.

        A beginning or an end that would be one together with what stands beside it is hidden, too.
        """

        def number(piece: str) -> str:
            hidden.append(piece)
            return f"{MARK}{len(hidden) - 1}{MARK}"

        text = self._hidden_pattern.sub(lambda found: number(found[0]), text)
        body = text.strip()
        start = text.index(body)
        before, after = text[:start], text[start + len(body) :]
        lengths = range(min(self._longest, len(body)), 0, -1)
        if size := next((length for length in lengths if body[-length:] in self._starts), 0):
            body = body[:-size] + number(body[-size:])
        if size := next((length for length in lengths if body[:length] in self._ends), 0):
            body = number(body[:size]) + body[size:]
        return before + body + after

    def encode_template(self, rendered: str, hidden: list[str]) -> list[int]:
        """Return the ids of what a chat template wrote around hidden texts: control tokens are the template's alone."""
        found = [match for match in self._token_pattern.finditer(rendered) if match[1]]
        own = [self.texts[match[1]] for match in found]
        ids: list[int] = self._tokenizer.encode(show(rendered, hidden), add_special_tokens=False).ids
        if [token for token in ids if token in self.ids] == own:
            return ids
        ids, start = [], 0
        for match in found:
            ids += [*self.encode_plain(show(rendered[start : match.start()], hidden)), self.texts[match[1]]]
            start = match.end()
        return [*ids, *self.encode_plain(show(rendered[start:], hidden))]


def show(text: str, hidden: list[str]) -> str:
    """Return a text with the hidden pieces back in their places."""
    return re.sub(f"{MARK}([0-9]+){MARK}", lambda found: hidden[int(found[1])], text)


def _twin(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer with the same ids whose control tokens have names that no text has.

    A new name, where HF's ``split_special_tokens`` only leaves special tokens out of the search: a model of whole words
    would find them in its own list.
    """
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.to_str())
    secret = secrets.token_hex(16)
    names = {text: f"{secret} {number}" for number, text in enumerate(texts)}
    for token in document["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = document["model"]
    vocabulary: Any = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint([*pair, "".join(pair)])]
    twin = Tokenizer.from_str(json.dumps(document | {"post_processor": None}))
    twin.encode_special_tokens = True
    return twin
