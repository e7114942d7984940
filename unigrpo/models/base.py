"""The contract between a policy and everything that samples from it or trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from PIL.Image import Image

    from unigrpo.models.tokenizer import TextTokenizer
    from unigrpo.settings import LoraSettings, SamplingSettings
    from unigrpo.types import Canvas, ModelInput, Prompt, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Token ids that the algorithms need; all sizes and ids come from the checkpoint's own files."""

    size: int
    """Rows of the embedding."""
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    """Equals eos in released tokenizers, so padding is never inferred from it."""
    text_range: tuple[int, int]
    """Half-open range of ids that text may use."""
    image_range: tuple[int, int] | None = None
    """Half-open range of the image codes; None for a text-only policy."""
    special: dict[str, int] | None = None
    """Named ids: bos, soi, eoi, t2i, mmu, ipad, start_header, end_header, eot."""


class Policy(Protocol):
    """A masked-diffusion model with its tokenizer, seen from outside."""

    vocabulary: Vocabulary
    tokenizer: TextTokenizer | None
    """None for a checkpoint without tokenizer files: token ids only."""
    adapter: LoraSettings | None
    """The adapter that `unigrpo.models.adapter` put on, its targets as full names; None: all weights train."""
    source: str
    """The folder or hub id of the weights; adapters name it as their base."""
    revision: str | None
    folder: Path | None
    """Where config.json and the tokenizer files are."""

    @property
    def module(self) -> torch.nn.Module:
        """Return the nn.Module that trains."""

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""

    @property
    def lora_targets(self) -> list[str]:
        """Return regular-expression-free full module names that LoRA wraps by default."""

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return the canvas of a prompt: chat template, image codes, open spans, the unconditional twin."""

    def image_features(self, images: Sequence[Image]) -> torch.Tensor | None:
        """Return [F, D]: a prompt's pictures as its canvas holds them; None for a family that reads no pixels."""

    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        """Return [N, L, D] after the final norm."""

    def head(self, hidden: torch.Tensor, vocabulary_range: tuple[int, int] | None = None) -> torch.Tensor:
        """Return logits [..., V'] over a half-open range of ids (None: all of V), in a fresh tensor.

        Inside a range the mask token, where it lies there, has no probability.
        """

    def logits(self, token_ids: torch.Tensor, is_padding: torch.Tensor | None = None) -> torch.Tensor:
        """Return [N, L, V]: head after hidden, for checks and small models."""

    def decode_text(self, token_ids: np.ndarray) -> str:
        """Return the text of a span's ids, up to the first EOS."""

    def decode_image(self, token_ids: np.ndarray, span: Span) -> Image:
        """Return the picture of an image span's ids."""
