"""LaViDa: the LLaDA body under its own names, a SigLIP tower whose tiles are pooled 2 x 2, and a prompt for itself.

In prefix mode, which the fast released sampler uses and which is the default here, the prompt sees only the prompt and
the answer sees everything; so the prompt's keys and values are exact for good, and are computed once. ``"prefix_lm":
false`` in config.json makes every position see every other, as the released training does by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unigrpo.errors import UserError
from unigrpo.models.base import Abilities
from unigrpo.models.layers.attention import Visible, mask_pieces, visible_keys
from unigrpo.models.layers.llada import Llada, LladaConfig
from unigrpo.models.llava import LlavaPolicy, VisionEncoder, embed
from unigrpo.types import ModelInput

POOL_STRIDE = 2
"""The released stride, where config.json gives none."""


class _Lavida(Llada):
    """The body with its vision encoder."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        sizes = LladaConfig.from_dict(config)
        super().__init__(sizes)
        mode = config.get("mm_spatial_pool_mode", "bilinear")
        if mode != "bilinear":
            raise UserError(f"config.json has mm_spatial_pool_mode {mode!r}; this code computes bilinear")
        stride = config.get("mm_spatial_pool_stride") or POOL_STRIDE
        self.vision_encoder = VisionEncoder(self.model, config, sizes.d_model, pool_stride=stride)
        self.is_prefix = bool(config.get("prefix_lm", True))


@dataclass(frozen=True, kw_only=True, slots=True)
class _KeptPrompts:
    """Keys and values of the prompts of N rows, which no answer changes."""

    keys: tuple[Tensor, ...]
    """[U, P, H, W] of each block, rotated; U different prompts, padded on the right to the longest."""
    values: tuple[Tensor, ...]
    is_padding: Tensor
    """[U, P] bool."""
    prompt_of: Tensor
    """[N] int64: the prompt of each row."""
    starts: Tensor
    """[N] int64: the column of each row's first answer position."""


class LavidaPolicy(LlavaPolicy):
    """LaViDa behind the policy contract (`unigrpo.models.base.Policy`): pictures and text in, text out."""

    abilities = Abilities(tasks=("reason", "understand"), attention="prefix", pictures="pixels")
    architectures = ("LlavaLladaForMaskedDiffusion",)
    hub_names = ("lavida",)
    layouts = r"""
    lavida:
      like: llada
      title: LaViDa
      checkpoints: 8B
      golden: lavida_tiny
      config: {image_aspect_ratio: anyres, mm_hidden_size: 48, mm_patch_merge_type: spatial_unpad,
        mm_projector_type: mlp2x_gelu, mm_use_im_patch_token: false, mm_use_im_start_end: false,
        mm_vision_select_feature: patch, mm_vision_select_layer: -2, model_type: llava_llada,
        tokenizer_padding_side: right, use_mm_proj: true, architectures: [LlavaLladaForMaskedDiffusion],
        image_grid_pinpoints: [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]], mm_newline_position: grid,
        mm_resampler_type: null, mm_spatial_pool_mode: bilinear, mm_spatial_pool_stride: 2,
        mm_vision_tower: 'tiny SigLIP, in these files', tokenizer_model_max_length: 4096, _tiny_vision: {
          image_size: 56, patch_size: 8, hidden_size: 48, intermediate_size: 96, num_hidden_layers_in_file: 2,
          num_attention_heads: 4, layer_norm_eps: 1.0e-06, hidden_act: gelu_pytorch_tanh}}
      releases:
        8b: {d_model: 4096, n_layers: 32, n_heads: 32, n_kv_heads: 32, mlp_hidden_size: 12288,
          vocab_size: 126464, embedding_size: 126464, mm_hidden_size: 1152,
          mm_vision_tower: google/siglip-so400m-patch14-384, _tiny_vision: null,
          image_grid_pinpoints: [[384, 768], [768, 384], [768, 768], [1152,
              384], [384, 1152]]}
    """

    module: _Lavida

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if not self.module.is_prefix:
            self.abilities = replace(self.abilities, attention="full")

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> _Lavida:
        """Return the body of a config.json."""
        return _Lavida(config)

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm; in prefix mode the positions before the answer see each other only."""
        is_visible: Visible = visible_keys(model_input.is_padding)
        if self.module.is_prefix and model_input.prompt_lengths is not None:
            lengths, length = model_input.prompt_lengths, model_input.token_ids.shape[1]
            rows = partial(prefix_rows, lengths, length, visible_keys(model_input.is_padding))
            is_visible = mask_pieces(rows, (0, int(lengths.min()), int(lengths.max()), length))
        return self.module.through(self._embed(model_input), is_visible, model_input.positions)

    def keep_prompts(self, model_input: ModelInput) -> _KeptPrompts | None:
        """Return the prompts' keys and values, equal prompts computed once; None where the prompt sees the answer.

        Prompts start at column 0, with ``prompt_lengths``.
        """
        lengths = model_input.prompt_lengths
        if not self.module.is_prefix or lengths is None or bool((lengths == 0).any()):
            return None
        columns = torch.arange(int(lengths.max()), device=lengths.device)
        is_padding = columns >= lengths[:, None]
        if model_input.is_padding is not None:
            is_padding = is_padding | model_input.is_padding[:, : len(columns)]
        prompts = model_input.token_ids[:, : len(columns)].masked_fill(is_padding, -1)
        unique, prompt_of = torch.unique(prompts, dim=0, return_inverse=True)
        is_padding = unique < 0
        kept: list[tuple[Tensor, Tensor]] = []

        def keep(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            kept.append((keys, values))
            return keys, values

        given = ModelInput(token_ids=unique.clamp(min=0), image_features=model_input.image_features)
        num_blocks = self.module.config.n_layers
        self.module.through(self._embed(given), visible_keys(is_padding), None, [keep] * num_blocks)
        return _KeptPrompts(
            keys=tuple(keys for keys, _ in kept),
            values=tuple(values for _, values in kept),
            is_padding=is_padding,
            prompt_of=prompt_of,
            starts=lengths,
        )

    def hidden_after(self, model_input: ModelInput, kept: _KeptPrompts, rows: Tensor) -> Tensor:
        """Return [n, A, D] of the answers of some rows, from whole rows: column c of row r is c - ``starts[r]`` here.

        Args:
            model_input: the rows [n, L], prompts included.
            kept: what ``keep_prompts`` gave for all rows.
            rows: [n] of them.
        """
        ids, starts, prompts = model_input.token_ids, kept.starts[rows], kept.prompt_of[rows]
        length = ids.shape[1]
        columns = starts[:, None] + torch.arange(length - int(starts.min()), device=ids.device)
        is_beyond = columns >= length
        columns = columns.clamp(max=length - 1)
        if model_input.is_padding is not None:
            is_beyond = is_beyond | model_input.is_padding.gather(1, columns)
        answers = ModelInput(token_ids=ids.gather(1, columns), image_features=model_input.image_features)
        extends = [
            partial(_after, keys[prompts], values[prompts]) for keys, values in zip(kept.keys, kept.values, strict=True)
        ]
        is_visible = visible_keys(torch.cat((kept.is_padding[prompts], is_beyond), dim=1))
        return self.module.through(self._embed(answers), is_visible, columns, extends)

    def _embed(self, model_input: ModelInput) -> Tensor:
        return embed(self.module.model.transformer.wte, model_input.token_ids, model_input.image_features)


def _after(prompt_keys: Tensor, prompt_values: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat((prompt_keys, keys), dim=1), torch.cat((prompt_values, values), dim=1)


def prefix_rows(prompt_lengths: Tensor, length: int, is_visible: Tensor | None, start: int, stop: int) -> Tensor:
    """Return [N, queries, L] bool: a prompt's positions see the prompt, an answer's see both.

    ``prompt_lengths`` are [N]; ``is_visible`` [N, 1, 1, L] are keys that are seen, None all; queries are start .. stop.
    """
    is_answer = torch.arange(length, device=prompt_lengths.device) >= prompt_lengths[:, None]
    allowed = is_answer[:, start:stop, None] | ~is_answer[:, None, :]
    if is_visible is None:
        return allowed
    # A row of padding in front of the prompt would see nothing: it sees itself, and nobody sees it.
    itself = torch.zeros_like(allowed[:1])
    itself[0, :, start:stop].fill_diagonal_(True)
    return (allowed & is_visible[:, 0]) | itself
