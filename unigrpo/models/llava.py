"""What LLaVA-style families share: tower, projector and newline in the body, and prompts with pictures in their text.

A picture becomes a run of features that stand where token embeddings would. Their ids lie beyond the vocabulary, so
that a canvas, a rollout and a batch stay what they are for text. The tower, the projector and the newline never train:
their features are computed once a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unigrpo.errors import UserError
from unigrpo.models.canvas import Piece, text_canvas
from unigrpo.models.layers.siglip import SiglipTower, tower_config
from unigrpo.models.layers.transformers_body import fill_buffers
from unigrpo.models.pictures.tiles import TileSettings, count_features, cut_tiles, lay_out, pool
from unigrpo.models.text_policy import TextPolicy
from unigrpo.pictures import as_rgb
from unigrpo.types import Message, ModelInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Canvas, Prompt

PICTURE = "<image>"
"""Where a picture stands in the text of a message."""
PLACEHOLDER = -200
"""The id by which the reference marks a picture in token ids; ``logits`` takes it, too."""
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""The system message under which the families are trained; it stands where a prompt brings none."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
"""The released template; it stands in where the tokenizer brings none."""


class VisionEncoder:
    """A body's frozen picture part: the settings, and the way from a picture to its features.

    Args:
        model: the level of the body to which the released names give ``vision_tower``, ``mm_projector`` and
            ``image_newline``; they are put on it.
        config: content of config.json.
        width: of the body.
        pool_stride: by which the side of every tile is reduced after the projector.

    Raises:
        UserError: a tower, a projector or a way of reading pictures that is not computed here.
    """

    def __init__(self, model: Any, config: Mapping[str, Any], width: int, pool_stride: int = 1) -> None:
        if config.get("mm_projector_type") != "mlp2x_gelu":
            raise UserError(
                f"config.json has mm_projector_type {config.get('mm_projector_type')!r}; this code computes mlp2x_gelu"
            )
        sizes: Any = tower_config(config)  # transformers allows two sides; ours is one
        self._model, self._side, self._pool_stride = model, sizes.image_size // sizes.patch_size, pool_stride
        self.tiles = TileSettings.from_dict(config, sizes.image_size)
        model.vision_tower = nn.ModuleDict({"vision_tower": SiglipTower(sizes)})  # the released names say it twice
        model.mm_projector = nn.Sequential(nn.Linear(sizes.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        model.image_newline = nn.Parameter(torch.empty(width))
        for part in (model.vision_tower, model.mm_projector, model.image_newline):
            part.requires_grad_(False)

    def count(self, size: tuple[int, int]) -> int:
        """Return F, how many features a picture of a width and height has: nothing is computed."""
        return count_features(size, self.tiles, math.ceil(self._side / self._pool_stride))

    def features(self, picture: Image) -> Tensor:
        """Return [F, D]: the picture as the body reads it."""
        picture = as_rgb(picture)  # a camera's rotation changes its size
        return self.tile_features(cut_tiles(picture, self.tiles), picture.size)

    @torch.no_grad()
    def tile_features(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return [F, D] of a picture of a width and height that is cut already: [T, 3, S, S] of `cut_tiles`."""
        newline = self._model.image_newline
        projected = self._model.mm_projector(self._model.vision_tower.vision_tower(pixels.to(newline.device)))
        if self._pool_stride > 1:
            projected = pool(projected, self._pool_stride)
        return lay_out(projected, size, self.tiles, newline)


def embed(table: nn.Embedding, token_ids: Tensor, image_features: Tensor | None) -> Tensor:
    """Return [N, L, D]: embeddings, and the features where ids lie beyond the table."""
    if image_features is None:
        return table(token_ids)
    size = table.num_embeddings
    is_picture = token_ids >= size
    index = (token_ids - size).clamp(min=0)
    return torch.where(is_picture[..., None], image_features[index], table(token_ids.masked_fill(is_picture, 0)))


class LlavaPolicy(TextPolicy):
    """Pictures and text in, text out, over several turns; a family says how its body is built and called."""

    frozen_parts = ("model.vision_tower.", "model.mm_projector.")

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        fill_buffers(self.module.model.vision_tower.vision_tower.vision_model)

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return the config without a start id outside the vocabulary: the conversion script's, which nothing uses."""
        given = super().complete_config(config, folder)
        if (given.get("bos_token_id") or 0) >= cls.embedding_rows(given):
            del given["bos_token_id"]
        return given

    def image_features(self, images: Sequence[Image]) -> Tensor | None:
        """Return [F, D]: the features of a prompt's pictures, one after another; None without pictures."""
        return torch.cat([self.module.vision_encoder.features(image) for image in images]) if images else None

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return the canvas of a conversation: its pictures stand where ``<image>`` does, else before their message.

        A conversation with as many marks as pictures has them there, whichever message brings them; in a message that
        brings none the mark is text otherwise.

        Raises:
            UserError: a text-to-image prompt, no picture where the task needs one, a message whose pictures and marks
                differ in number, or a way to make squares of them.
        """
        if prompt.kind == "imagine" or (prompt.kind == "understand") != bool(prompt.images):
            raise UserError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r} with {len(prompt.images)} pictures; wanted reason "
                "without pictures or understand with at least one"
            )
        if prompt.image_fit is not None:
            raise UserError(
                f"prompt {prompt.id!r} has image_fit {prompt.image_fit!r}; this family cuts pictures into tiles: leave "
                "data.image_fit out"
            )
        features = [self.module.vision_encoder.features(image) for image in prompt.images]
        pieces: list[Piece] = []
        start = self.vocabulary.size
        for number, ids in enumerate(self._text_chunks(prompt)):
            if number:
                stop = start + len(features[number - 1])
                pieces.append((range(start, stop), "image_slot"))
                start = stop
            pieces.append((ids, None))
        canvas = text_canvas(pieces, sampling, self.vocabulary)
        return replace(canvas, image_features=torch.cat(features) if features else None)

    def num_prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt gives, its pictures' features included; nothing is computed."""
        num_features = sum(self.module.vision_encoder.count(image.size) for image in prompt.images)
        return sum(map(len, self._text_chunks(prompt))) + num_features

    def _text_chunks(self, prompt: Prompt) -> list[list[int]]:
        """Return the ids of the text before, between and after the pictures, each chunk tokenized by itself."""
        num_marks = sum(message.text.count(PICTURE) for message in prompt.messages)
        is_marked = 0 < num_marks == len(prompt.images)
        turns = [
            (message.role, message.text.split(PICTURE) if is_marked else _parts(message)) for message in prompt.messages
        ]
        if turns[0][0] != "system":
            turns.insert(0, ("system", [SYSTEM]))
        tokenizer = self.text_tokenizer
        chunks = tokenizer.encode_chat_parts(turns, CHAT_TEMPLATE if tokenizer.chat_template is None else None)
        if len(chunks) != len(prompt.images) + 1:
            raise UserError(
                f"the chat template shows {len(chunks) - 1} of the {len(prompt.images)} pictures of prompt "
                f"{prompt.id!r}; wanted one that writes every message once"
            )
        return chunks

    def logits(
        self, token_ids: Tensor, is_padding: Tensor | None = None, images: Sequence[Image] | None = None
    ) -> Tensor:
        """Return [N, L', V]: head after hidden, for checks and small models.

        Args:
            token_ids: [N, L]; each id of ``PLACEHOLDER`` grows into the features of the next picture.
            is_padding: [N, L] bool.
            images: the pictures in the order of their placeholders, row by row; rows of unequal growth end in padding.

        Raises:
            UserError: pictures and placeholders of different number.
        """
        num_places = int((token_ids == PLACEHOLDER).sum())
        if num_places != len(images or ()):
            raise UserError(
                f"{len(images or ())} pictures for {num_places} placeholders (id {PLACEHOLDER}): give one each"
            )
        if not images:
            return super().logits(token_ids, is_padding)
        features = [self.module.vision_encoder.features(image) for image in images]
        return self.head(self.hidden(self.grow(token_ids, is_padding, features)))

    def grow(self, token_ids: Tensor, is_padding: Tensor | None, features: Sequence[Tensor]) -> ModelInput:
        """Return rows in which each ``PLACEHOLDER`` has become the ids of the next picture's features.

        Args:
            token_ids: [N, L].
            is_padding: [N, L] bool.
            features: [F, D] of each picture, in the order of the placeholders, row by row.
        """
        counts = [len(part) for part in features]
        start, rows, padding_rows = self.vocabulary.size, [], []
        for row, token_row in enumerate(token_ids.tolist()):
            ids: list[int] = []
            row_padding: list[bool] = []
            for column, token in enumerate(token_row):
                piece = [token]
                if token == PLACEHOLDER:
                    piece = list(range(start, start + counts.pop(0)))
                    start += len(piece)
                ids += piece
                row_padding += [is_padding is not None and bool(is_padding[row, column])] * len(piece)
            rows.append(torch.tensor(ids))
            padding_rows.append(torch.tensor(row_padding))
        grown = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.vocabulary.pad_token_id)
        is_grown_padding = nn.utils.rnn.pad_sequence(padding_rows, batch_first=True, padding_value=True)
        device = token_ids.device
        return ModelInput(
            token_ids=grown.to(device),
            is_padding=is_grown_padding.to(device) if bool(is_grown_padding.any()) else None,
            image_features=torch.cat(list(features)) if features else None,
        )


def _parts(message: Message) -> list[str]:
    """Return a message's text cut at its pictures, which stand at its ``<image>``, or all before it on a line.

    Without pictures ``<image>`` is text.
    """
    num_places, num_images = message.text.count(PICTURE), len(message.images)
    if not num_images:
        return [message.text]
    if not num_places:
        return ["", *[" "] * (num_images - 1), "\n" + message.text]
    if num_places != num_images:
        raise UserError(
            f"a message of the {message.role} has {num_images} pictures and {PICTURE} {num_places} times in its text; "
            "wanted one each, or no mark at all"
        )
    return message.text.split(PICTURE)
