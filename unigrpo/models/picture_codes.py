"""What families share whose pictures are codes of an image tokenizer: reading them, writing them, and inpainting.

    imagine      [t2i] bos text eos soi MASK*N eoi        twin: [ipad]*left [t2i] bos eos soi MASK*N eoi

The references pad every picture prompt on the left to one length; a canvas has no padding, so the conditional row
starts at [t2i] and only the twin is padded, up to the row's own length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.errors import UserError
from unigrpo.models.canvas import Piece, given_spans, open_span, text_canvas
from unigrpo.models.pictures.pixels import picture_to_pixels, pixels_to_picture
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import Canvas, ImageFit, Prompt, Span

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.settings.tasks import SamplingSettings

NUM_PICTURE_MARKS = 5
"""Tokens of a caption's row that are neither caption nor code: task, start, end, and the two around the picture."""
DOWNSAMPLING = 16
"""Pixels of a code's side in the released image tokenizer."""


class PictureCodesPolicy(TextPolicy):
    """A policy whose vocabulary holds image codes behind the text; a family says what stands before an open text."""

    @classmethod
    def codebook_size(cls, config: Mapping[str, Any]) -> int | None:
        """Return the number of image codes of a config.json, 8192 where it is silent."""
        return int(config.get("codebook_size") or 8192)

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return the canvas of a prompt of any of the three tasks.

        Raises:
            UserError: pictures where the task has none, or none where it needs them, or ids that are not known.
        """
        if prompt.kind == "imagine":
            return self._picture_canvas(prompt, sampling, np.full(sampling.completion_length, -1, dtype=np.int64))
        return text_canvas(self._text_pieces(prompt, self._picture_ids), sampling, self.vocabulary)

    def num_prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt gives; pictures are counted, not read."""
        if prompt.kind == "imagine":
            return len(self.text_tokenizer.encode(prompt.text)) + NUM_PICTURE_MARKS
        num_codes = (self.image_size // getattr(self.image_tokenizer, "downsampling", DOWNSAMPLING)) ** 2
        return sum(len(ids) for ids, _ in self._text_pieces(prompt, lambda *_: range(num_codes)))

    @abstractmethod
    def _text_pieces(self, prompt: Prompt, read: Callable[[Image, ImageFit | None], Sequence[int]]) -> list[Piece]:
        """Return what stands before the open text of a prompt that is no picture to write; ``read`` gives the codes."""

    def encode_image_canvas(
        self, prompt: Prompt, sampling: SamplingSettings, codes: np.ndarray, is_open: np.ndarray
    ) -> Canvas:
        """Return a canvas whose open picture holds given codes: inpainting and extrapolation.

        ``codes`` [N] give the length and are ignored where ``is_open`` [N], the positions to fill.

        Raises:
            UserError: shapes that differ, nothing open, or a given code outside the codebook.
        """
        codes, is_open = np.asarray(codes), np.asarray(is_open, dtype=bool)
        if codes.shape != is_open.shape or codes.ndim != 1 or not is_open.any():
            raise UserError(
                f"codes {codes.shape} and is_open {is_open.shape} with {int(is_open.sum())} open positions; wanted two "
                "flat arrays of one length and at least one open position"
            )
        start, stop = self._image_range
        given = codes[~is_open]
        if given.size and not 0 <= given.min() <= given.max() < stop - start:
            raise UserError(f"given codes span {given.min()}..{given.max()}; the codebook has 0..{stop - start - 1}")
        return self._picture_canvas(prompt, sampling, np.where(is_open, -1, codes))

    def decode_image(self, token_ids: np.ndarray, span: Span) -> Image:
        """Return the picture of an image span's ids [N]; pixels are rounded once, to uint8.

        Raises:
            UserError: no image tokenizer, or ids that are no image codes.
        """
        import torch

        start, stop = self._image_range
        codes = np.asarray(token_ids, dtype=np.int64)
        if codes.shape != (span.stop - span.start,) or not ((codes >= start) & (codes < stop)).all():
            raise UserError(
                f"{codes.shape} ids from {codes.min()} to {codes.max()} are no picture of {span.stop - span.start} "
                f"codes in {start}:{stop}; give the ids of the image span alone, filled"
            )
        with torch.no_grad():
            pixels = self._picture_codec.decode(torch.from_numpy(codes - start)[None])
        return pixels_to_picture(pixels[0])

    @property
    def _image_range(self) -> tuple[int, int]:
        if self.vocabulary.image_range is None:
            raise UserError(
                f"{self.source} has no tokenizer files, so where its image codes start is not known; give "
                "load_policy(tokenizer=FOLDER) or load_policy(vocabulary={'image_offset': ...})"
            )
        return self.vocabulary.image_range

    @property
    def _picture_codec(self) -> Any:
        if self.image_tokenizer is None:
            raise UserError("pictures need the MAGVIT-v2 tokenizer: give load_policy(image_tokenizer=FOLDER)")
        return self.image_tokenizer

    def _special(self, *names: str) -> list[int]:
        special = self.vocabulary.special or {}
        missing = [name for name in names if name not in special]
        if missing:
            raise UserError(
                f"the ids of {', '.join(missing)} are not known: the tokenizer has no such tokens; give them as "
                f"load_policy(vocabulary={{{missing[0]!r}: ...}})"
            )
        return [special[name] for name in names]

    def _picture_ids(self, picture: Image, fit: ImageFit | None) -> list[int]:
        import torch

        pixels = picture_to_pixels(picture, self.image_size, fit or self.image_fit)
        with torch.no_grad():
            codes = self._picture_codec.encode(pixels[None])[0]
        start, stop = self._image_range
        ids = [start + int(code) for code in codes]
        if not all(start <= token < stop for token in ids):
            raise UserError(
                f"the image tokenizer gives codes up to {max(ids) - start}, the policy has {stop - start}; they are "
                "not of one model"
            )
        return ids

    def _picture_canvas(self, prompt: Prompt, sampling: SamplingSettings, codes: np.ndarray) -> Canvas:
        """Return the text-to-image canvas; codes [N] are -1 at the positions to fill."""
        if prompt.kind != "imagine" or prompt.images:
            raise UserError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r} with {len(prompt.images)} pictures; wanted imagine "
                "without pictures"
            )
        t2i, bos, soi, eoi, ipad = self._special("t2i", "bos", "soi", "eoi", "ipad")
        eos = self.vocabulary.eos_token_id
        image_range = self._image_range
        filling = np.where(codes < 0, self.vocabulary.mask_token_id, codes + image_range[0])
        text = self.text_tokenizer.encode(prompt.text)
        head, spans = given_spans([([t2i, bos, *text, eos, soi], None)])
        picture = open_span("image_codes", len(head), len(codes), sampling, image_range)
        is_padding = np.arange(picture.stop + 1) < len(text)
        return Canvas(
            token_ids=np.concatenate([head, filling, [eoi]]).astype(np.int64),
            spans=(*spans, picture, Span(kind="prompt", start=picture.stop, stop=picture.stop + 1)),
            unconditional_ids=np.concatenate([[ipad] * len(text), [t2i, bos, eos, soi], filling, [eoi]]).astype(
                np.int64
            ),
            unconditional_is_padding=is_padding,
        )
