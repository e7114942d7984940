"""Demonstrations as rows of tokens, and the noise that a supervised step puts on them."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from unigrpo.errors import UserError
from unigrpo.lru import LruCache
from unigrpo.models.pictures.features import join_features, shift_ids
from unigrpo.models.pictures.pixels import picture_to_pixels
from unigrpo.seeding import fold, uniform
from unigrpo.settings.sft import SftTaskSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.supervised.losses import num_masked_codes, text_mask_prob
from unigrpo.types import Canvas, Prompt, TaskKind

if TYPE_CHECKING:
    from unigrpo.data.sources import PromptSource

_CACHE_SIZE = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """N demonstrations of one task, padded on the right to one length."""

    clean_ids: torch.Tensor
    """[N, L] int64."""
    is_open: torch.Tensor
    """[N, L] bool: the completion, with the EOS that teaches its length."""
    is_padding: torch.Tensor | None
    """[N, L] bool; None where no row has any."""
    keys: torch.Tensor
    """[N] int64: keys the noise of each row."""
    image_features: torch.Tensor | None = None
    """[F, D] of all rows together, see ``ModelInput``."""

    @property
    def prompt_lengths(self) -> torch.Tensor:
        """Return [N] int64: positions before the first open one."""
        return self.is_open.to(torch.int8).argmax(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyRows:
    """Rows with the mask token on a part of their completions."""

    token_ids: torch.Tensor
    """[N, L] int64."""
    is_masked: torch.Tensor
    """[N, L] bool."""
    mask_prob: torch.Tensor
    """[N, L] float32: probability with which each row's tokens were masked."""


class Demonstrations:
    """The demonstrations of one task, step by step: a function of (seed, step, row) only."""

    def __init__(
        self,
        policy: Any,
        task: str,
        settings: SftTaskSettings,
        source: PromptSource,
        *,
        seed: int,
        caption_dropout: float,
    ) -> None:
        """Take a policy that encodes, the task's name, and the prompts; ``caption_dropout`` is for text-to-image."""
        self._policy, self._task, self._settings, self._source, self._seed = policy, task, settings, source, seed
        self._caption_dropout = caption_dropout if settings.kind == "imagine" else 0.0
        self._sampling = SamplingSettings(
            completion_length=settings.completion_length,
            num_denoising_steps=settings.completion_length,
            guidance_scale=1.0 if self._caption_dropout > 0 else 0.0,
        )
        self._canvases: LruCache[str, Canvas] = LruCache(_CACHE_SIZE)

    def rows(self, step: int, *, is_clean: bool = False) -> Rows:
        """Return the batch of a step; a clean one has right demonstrations only.

        Raises:
            ValueError: if a demonstration is longer than the completion length.
        """
        count = self._settings.batch_size
        keys = [fold(self._seed, "sft", self._task, step, row) for row in range(count)]
        noise = 0.0 if is_clean else self._settings.noise
        prompts = [self._source[step * count + row] for row in range(count)]
        self._encode_together(prompts)
        canvases = [self._canvas(prompt) for prompt in prompts]
        rows = [
            self._row(prompt, canvas, key, noise) for prompt, canvas, key in zip(prompts, canvases, keys, strict=True)
        ]
        length = max(len(clean) for clean, _, _ in rows)
        clean_ids = torch.full((count, length), self._policy.vocabulary.pad_token_id, dtype=torch.int64)
        is_open = torch.zeros(count, length, dtype=torch.bool)
        is_padding = torch.ones(count, length, dtype=torch.bool)
        for number, (clean, is_open_row, is_padding_row) in enumerate(rows):
            clean_ids[number, : len(clean)] = torch.from_numpy(clean)
            is_open[number, : len(clean)] = torch.from_numpy(is_open_row)
            is_padding[number, : len(clean)] = torch.from_numpy(is_padding_row)
        features, offsets = join_features([canvas.image_features for canvas in canvases])
        return Rows(
            clean_ids=shift_ids(clean_ids, offsets, self._policy.vocabulary.size),
            image_features=features,
            is_open=is_open,
            is_padding=is_padding if bool(is_padding.any()) else None,
            keys=torch.tensor(keys),
        )

    def _row(self, prompt: Prompt, canvas: Canvas, key: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return clean ids [L], is_open [L] and is_padding [L] of one demonstration."""
        generator = np.random.default_rng(key)
        completion = self._source.demonstration(prompt, generator, noise)
        is_open = np.zeros(len(canvas.token_ids), dtype=bool)
        for span in canvas.open_spans:
            is_open[span.start : span.stop] = True
        clean, is_padding = canvas.token_ids.copy(), np.zeros(len(is_open), dtype=bool)
        if canvas.unconditional_ids is not None and generator.random() < self._caption_dropout:
            clean = canvas.unconditional_ids.copy()
            if canvas.unconditional_is_padding is not None:
                is_padding = canvas.unconditional_is_padding
        ids = self._text_ids(prompt, completion) if isinstance(completion, str) else self._image_ids(prompt, completion)
        if len(ids) != is_open.sum():
            raise UserError(
                f"the demonstration of prompt {prompt.id!r} has {len(ids)} tokens for {is_open.sum()} open positions; "
                f"set tasks.{self._task}.completion_length to fit"
            )
        clean[is_open] = ids
        return clean, is_open, is_padding

    def _encode_together(self, prompts: list[Prompt]) -> None:
        """Encode the pictures of a batch in one call; the policy then finds each remembered."""
        if isinstance(self._policy.image_tokenizer, CachedCodes):
            pixels = [self._pixels(picture, prompt) for prompt in prompts for picture in prompt.images]
            if pixels:
                self._policy.image_tokenizer.encode(torch.stack(pixels))

    def _canvas(self, prompt: Prompt) -> Canvas:
        """Return the canvas of a prompt; those without pictures are kept, since chat templates are slow."""
        key = "\x1f".join(f"{message.role}\x1e{message.text}" for message in prompt.messages)
        known = {} if prompt.images else self._canvases.get([key])
        canvas: Canvas = known.get(key) or self._policy.encode(prompt, self._sampling)
        if not prompt.images:
            self._canvases.put({key: canvas})
        return canvas

    def _text_ids(self, prompt: Prompt, text: str) -> np.ndarray:
        length, eos = self._settings.completion_length, self._policy.vocabulary.eos_token_id
        ids = self._policy.text_tokenizer.encode(text)
        if len(ids) > length:
            raise UserError(
                f"the demonstration of prompt {prompt.id!r} is {len(ids)} tokens long, over completion_length {length} "
                f"of task {self._task!r}; raise it"
            )
        return np.array(ids + [eos] * (length - len(ids)), dtype=np.int64)

    def _pixels(self, picture: Image.Image, prompt: Prompt) -> torch.Tensor:
        return picture_to_pixels(picture, self._policy.image_size, prompt.image_fit or self._policy.image_fit)

    def _image_ids(self, prompt: Prompt, picture: Image.Image) -> np.ndarray:
        pixels = self._pixels(picture, prompt)
        codes = self._policy.image_tokenizer.encode(pixels[None].to(self._policy.device))[0]
        return codes.cpu().numpy() + self._policy.vocabulary.image_range[0]


def with_complement(rows: Rows, noisy: NoisyRows, mask_token_id: int) -> tuple[Rows, NoisyRows]:
    """Return 2N rows: the noisy ones, and each again with exactly the other tokens of its completion masked.

    Every token of a completion is then learnt from in every step (LaViDa, arXiv 2505.16839, complementary masking).
    """
    is_masked = torch.cat((noisy.is_masked, rows.is_open & ~noisy.is_masked))
    doubled = replace(
        rows,
        clean_ids=rows.clean_ids.repeat(2, 1),
        is_open=rows.is_open.repeat(2, 1),
        is_padding=None if rows.is_padding is None else rows.is_padding.repeat(2, 1),
        keys=rows.keys.repeat(2),
    )
    return doubled, NoisyRows(
        token_ids=doubled.clean_ids.masked_fill(is_masked, mask_token_id),
        is_masked=is_masked,
        mask_prob=torch.cat((noisy.mask_prob, 1.0 - noisy.mask_prob)),
    )


class CachedCodes:
    """An image tokenizer that encodes each picture once; the rest is the wrapped one's."""

    def __init__(self, image_tokenizer: Any) -> None:
        """Wrap a tokenizer."""
        self._image_tokenizer = image_tokenizer
        self._codes: LruCache[bytes, torch.Tensor] = LruCache(_CACHE_SIZE)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return codes [N, K] of pixels [N, 3, H, W] in [-1, 1]; those not seen before are encoded together."""
        keys = [hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).digest() for picture in pixels.cpu().float()]
        known = self._codes.get(keys)
        unseen = {key: row for row, key in enumerate(keys) if key not in known}
        if unseen:
            codes = self._image_tokenizer.encode(pixels[list(unseen.values())])
            known |= {key: row.clone() for key, row in zip(unseen, codes, strict=True)}
        self._codes.put(known)
        return torch.stack([known[key] for key in keys])

    def decode(self, codes: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Return pixels [N, 3, H, W] of codes [N, K]."""
        pixels: torch.Tensor = self._image_tokenizer.decode(codes, grid)
        return pixels


def caching_codes(policy: Any) -> Any:
    """Return a policy that encodes with cached codes and is otherwise the given one, which stays as it is."""
    if policy.image_tokenizer is None:
        return policy
    encoder = copy.copy(policy)
    encoder.image_tokenizer = CachedCodes(policy.image_tokenizer)
    return encoder


def add_noise(rows: Rows, *, kind: TaskKind, mask_token_id: int, min_mask_ratio: float) -> NoisyRows:
    """Return the rows with a part of their completions masked; prompts stay clean.

    Text: each token with probability ``(1 - eps) t + eps``. Pictures: ``round(N cos(pi t / 2))`` codes, at least one.
    The times t of a batch are evenly spread over [0, 1] from one random offset: each row's is uniform, as in the
    reference, but the batch's loss varies less (Kingma et al., arXiv 2107.00630, appendix I.1).
    """
    count, length = rows.clean_ids.shape
    offset = uniform(rows.keys[:1], 0, torch.zeros(1, dtype=torch.int64))[0, 0]
    time = torch.remainder(offset + torch.arange(count, dtype=torch.float64) / count, 1.0)
    draws = uniform(rows.keys, 1, torch.arange(length))
    if kind == "imagine":
        num_codes = int(rows.is_open[0].sum())
        masked = num_masked_codes(time, num_codes)
        rank = draws.masked_fill(~rows.is_open, 2.0).argsort(dim=1).argsort(dim=1)
        is_masked = rows.is_open & (rank < masked[:, None])
        mask_prob = masked.double() / num_codes
    else:
        mask_prob = text_mask_prob(time, min_mask_ratio)
        is_masked = rows.is_open & (draws < mask_prob[:, None])
    return NoisyRows(
        token_ids=rows.clean_ids.masked_fill(is_masked, mask_token_id),
        is_masked=is_masked,
        mask_prob=mask_prob[:, None].expand(count, length).float(),
    )
