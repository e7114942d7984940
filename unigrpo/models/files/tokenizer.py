"""Text to ids and back, from a checkpoint's own tokenizer files and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import optional_file
from unigrpo.models.files.byte_bpe import has_byte_bpe, read_byte_bpe
from unigrpo.models.files.chat_template import read_template, render, token_text, try_template
from unigrpo.models.files.control_tokens import GAP, ControlTokens, show
from unigrpo.models.files.folders import read_json
from unigrpo.types import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    model = read_json(path).get("model")  # the package itself names neither the file nor the fault
    if not isinstance(model, dict) or not model.get("vocab"):
        raise UserError(f"{path} has no `model` with a `vocab`, so it is no tokenizer; download it again")
    with ThreadPoolExecutor(1) as thread:  # a future keeps what it raises, which is the nameless class Exception
        reading = thread.submit(Tokenizer.from_file, str(path))
    if (error := reading.exception()) is not None:
        raise UserError(f"{path} is no tokenizer ({error}); download it again") from error
    return reading.result()


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer.json, or vocab.json and merges.txt."""
    return optional_file(folder / "tokenizer.json") is not None or has_byte_bpe(folder)


class TextTokenizer:
    """A checkpoint's tokenizer with its chat template. Never adds special tokens by itself."""

    def __init__(
        self, tokenizer: Tokenizer, *, chat_template: str | None = None, bos_token: str = "", eos_token: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self.folder: Path | None = None
        self.template_file: Path | None = None
        """What the chat template was read from."""
        self.chat_template, self.bos_token, self.eos_token = chat_template, bos_token, eos_token

    @classmethod
    def from_folder(cls, folder: str | Path) -> TextTokenizer:
        """Return the tokenizer of a folder.

        Args:
            folder: holds tokenizer.json, or vocab.json and merges.txt; the chat template is in chat_template.jinja or
                tokenizer_config.json.

        Raises:
            MissingFileError: neither.
            UserError: one without a model, or a chat template that is broken or takes too much time or memory.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not has_tokenizer(folder):
            raise MissingFileError(
                f"{folder} has no tokenizer.json; copy the checkpoint's tokenizer files there, or give the folder that "
                "has them as load_policy(tokenizer=FOLDER)"
            )
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path) if optional_file(config_path) else {}
        template, template_file = read_template(folder, config)
        bos_token, eos_token = (token_text(config, key, folder) for key in ("bos_token", "eos_token"))
        text_tokenizer = cls(
            _read_tokenizer(path) if optional_file(path) else read_byte_bpe(folder, config),
            chat_template=template,
            bos_token=bos_token,
            eos_token=eos_token,
        )
        text_tokenizer.folder, text_tokenizer.template_file = folder, template_file
        if template is not None:
            try_template(template, template_file, bos_token=bos_token, eos_token=eos_token)
        return text_tokenizer

    def __len__(self) -> int:
        """Return the number of tokens with the added ones: where MMaDA's image codes start."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its exact text, or None."""
        return self._tokenizer.token_to_id(token)

    def reserve(self, token_ids: Iterable[int]) -> None:
        """Count the tokens of these ids as control tokens, whether the files mark them as special or not."""
        more = set(token_ids) - self._control.ids
        if more:
            self._control = ControlTokens(self._tokenizer, {*self._control.ids, *more})

    @property
    def control_ids(self) -> frozenset[int]:
        """Return the ids that no text becomes: those of special tokens, and the reserved ones."""
        return self._control.ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text as it is written: the names of control tokens in it are letters."""
        return self._control.encode_plain(text)

    def encode_markup(self, text: str) -> list[int]:
        """Return the ids of a text in which the names of control tokens are these tokens: never one of a user's."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens and without ids that are no token (image codes)."""
        return self._tokenizer.decode([token for token in token_ids if token < len(self)], skip_special_tokens=True)

    def encode_chat(self, messages: Sequence[Message], chat_template: str | None = None) -> list[int]:
        """Return the ids of the conversation through the chat template, ready for the assistant's answer.

        Only the template makes control tokens; a name of one in a message is text.

        Raises:
            UserError: no chat template, or one that refuses the messages.
        """
        (ids,) = self.encode_chat_parts([(message.role, [message.text]) for message in messages], chat_template)
        return ids

    def encode_chat_parts(
        self, turns: Sequence[tuple[str, Sequence[str]]], chat_template: str | None = None
    ) -> list[list[int]]:
        """Return the ids of a conversation, cut wherever one part of a message's text ends and the next begins.

        ``turns`` are the role of each message with the parts of its text. Each piece is tokenized by itself.

        Raises:
            UserError: as `encode_chat`.
        """
        hidden: list[str] = []
        texts = [(role, GAP.join(self._control.hide(part, hidden) for part in parts)) for role, parts in turns]
        rendered = self._render(texts, chat_template)
        return [self._control.encode_template(piece, hidden) for piece in rendered.split(GAP)]

    def render_chat(self, messages: Sequence[Message], chat_template: str | None = None) -> str:
        """Return the conversation as the chat template writes it, with the assistant's header last.

        ``chat_template`` takes the place of the checkpoint's own; pictures are not the template's business.

        Raises:
            UserError: no chat template, or one that refuses the messages.
        """
        hidden: list[str] = []
        texts = [(message.role, self._control.hide(message.text, hidden)) for message in messages]
        return show(self._render(texts, chat_template), hidden)

    def _render(self, turns: Sequence[tuple[str, str]], chat_template: str | None) -> str:
        template = chat_template or self.chat_template
        if template is None:
            raise UserError(
                "the tokenizer has no chat template; put one into chat_template.jinja, or as `chat_template` into "
                "tokenizer_config.json, beside tokenizer.json"
            )
        return render(
            template,
            "the family" if template != self.chat_template else str(self.template_file or "the tokenizer"),
            [{"role": role, "content": text} for role, text in turns],
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )
