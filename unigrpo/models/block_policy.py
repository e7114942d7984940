"""What block-diffusion families share: block-causal attention, its cache, and canvases that end with a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unigrpo.errors import UserError
from unigrpo.files import optional_file
from unigrpo.models.files.folders import read_json
from unigrpo.models.layers.attention import mask_pieces, piece_bounds, positions_of
from unigrpo.models.layers.block_cache import BlockCache, block_rows, doubled_rows, sees_block
from unigrpo.models.layers.decoder import Decoder
from unigrpo.models.text_policy import TextPolicy

if TYPE_CHECKING:
    from unigrpo.models.base import KeyValueStore
    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Canvas, ModelInput, Prompt


class BlockPolicy(TextPolicy):
    """A policy (`unigrpo.models.base.BlockCausalPolicy`) whose body is a `Decoder`.

    The grid of blocks starts at a row's first token that is not padding, so a prompt shares its last block with the
    completion, as in the released samplers.
    """

    module: Decoder

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.block_length = self.module.block_length
        """The attention's, where a ``ModelInput`` does not say otherwise."""

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return the config with the id that ends a turn, the first one of generation_config.json, as its EOS."""
        path = folder / "generation_config.json"
        found = read_json(path).get("eos_token_id") if optional_file(path) else None
        ids = found if isinstance(found, list) else [found]
        return dict(config) if not ids or ids[0] is None else dict(config) | {"eos_token_id": ids[0]}

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm, block-causal.

        With clean ids each block is seen as it is in ``token_ids``, after the clean earlier blocks: one pass over rows
        of 2 L, [noisy ; clean], as block-diffusion models are trained (BD3-LM, arXiv 2503.09573; SDAR, arXiv
        2510.06303). That is what the sampler saw.
        """
        ids, length = model_input.token_ids, model_input.token_ids.shape[1]
        positions, size = _positions(model_input), model_input.block_length or self.block_length
        is_padding = model_input.is_padding
        if is_padding is not None and not bool(is_padding.any()):
            is_padding = None
        if model_input.clean_ids is None:
            is_visible = mask_pieces(partial(block_rows, positions, size, is_padding), piece_bounds(0, length))
        else:
            ids, positions = torch.cat((ids, model_input.clean_ids), dim=1), positions.repeat(1, 2)
            is_padding = None if is_padding is None else is_padding.repeat(1, 2)
            bounds = [*piece_bounds(0, length), *piece_bounds(length, 2 * length)]
            is_visible = mask_pieces(partial(doubled_rows, positions, size, is_padding), bounds)
        hidden: Tensor = self.module(ids, is_visible, positions.expand(len(ids), -1))
        return hidden[:, :length]

    def new_cache(self, capacity: int) -> BlockCache:
        """Return an empty store for rows of up to ``capacity`` positions; the first pass sets the number of rows."""
        return BlockCache(capacity)

    def hidden_cached(self, model_input: ModelInput, cache: KeyValueStore, rows: Tensor | None = None) -> Tensor:
        """Return [n, C, D] of some positions of each row, given those before them, and keep theirs.

        ``model_input`` has ids and positions [n, C], whole blocks in order; padding stands at the end and is not kept.
        The cache holds every earlier position; ``rows`` [n] are those of it, None all.
        """
        assert isinstance(cache, BlockCache)
        positions, is_padding = _positions(model_input), model_input.is_padding
        past_end = positions[:, -1:] + 1
        slots = positions
        if is_padding is not None:
            past_end = (positions + 1).masked_fill(is_padding, 0).amax(dim=1, keepdim=True)
            slots = positions.masked_fill(is_padding, cache.capacity)
        num_keys = int(past_end.max())
        keys = torch.arange(num_keys, device=positions.device)
        is_seen = sees_block(positions, keys, model_input.block_length or self.block_length)
        is_seen = is_seen & (keys < past_end)[:, None, :]
        is_visible = None if bool(is_seen.all()) else is_seen[:, None]  # without a mask a faster kernel may run
        window = cache.window(slots, num_keys, rows)
        hidden: Tensor = self.module(model_input.token_ids, is_visible, positions, cache=window)
        return hidden

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return chat-template ids and one open text span, which is lengthened to the end of its last block.

        Raises:
            UserError: a task other than reason, pictures, another block length than the attention's, or denoising
                steps that do not divide over the blocks.
        """
        size = self.block_length
        if sampling.block_length not in (None, size):
            raise UserError(
                f"sampling.block_length is {sampling.block_length}, and the attention of {self.source or 'the policy'} "
                f"has blocks of {size}; leave it out, or set block_size in config.json if the checkpoint was trained so"
            )
        num_blocks = -(-sampling.completion_length // size)
        if sampling.num_denoising_steps % num_blocks:
            raise UserError(
                f"num_denoising_steps {sampling.num_denoising_steps} does not divide over {num_blocks} blocks of "
                f"{size}; choose a multiple of {num_blocks}"
            )
        canvas = super().encode(prompt, sampling)
        *given, span = canvas.spans
        num_missing = -len(canvas.token_ids) % size
        masks = np.full(num_missing, self.vocabulary.mask_token_id, dtype=np.int64)
        stop = span.stop + num_missing
        num_blocks_open = -(-(stop - span.start) // size)
        steps = sampling.num_denoising_steps // num_blocks * num_blocks_open
        span = replace(span, stop=stop, block_length=size, num_denoising_steps=steps)
        return replace(canvas, token_ids=np.concatenate((canvas.token_ids, masks)), spans=(*given, span))


def _positions(model_input: ModelInput) -> Tensor:
    """Return [N or 1, L]: the given positions, or those among the row's tokens that are not padding."""
    if model_input.positions is not None:
        return model_input.positions
    if model_input.is_padding is None:
        length = model_input.token_ids.shape[1]
        return torch.arange(length, device=model_input.token_ids.device)[None]
    return positions_of(model_input.is_padding)
