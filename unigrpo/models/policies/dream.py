"""Dream 7B and DiffuCoder: the Qwen2 body without causal mask, whose output at a position predicts the next one.

Written from the released config keys and tensor names (Dream-org/Dream-v0-Instruct-7B, apple/DiffuCoder-7B-cpGRPO).
The released samplers read position i's logits from output i - 1, and position 0's from its own; `hidden` does that
once, so that nobody else has to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import ModelInput


def predicting_positions(is_padding: Tensor) -> Tensor:
    """Return [N, L]: the position whose output predicts each one, the last before it that is not padding.

    The first of a row is predicted from its own output, as the released sampler does; so is padding before it.
    """
    index = torch.arange(is_padding.shape[1], device=is_padding.device).expand_as(is_padding)
    latest = torch.where(is_padding, -1, index).cummax(dim=1).values
    before = torch.cat((torch.full_like(latest[:, :1], -1), latest[:, :-1]), dim=1)
    return torch.where(before < 0, index, before)


class DreamPolicy(TextPolicy):
    """Dream behind the policy contract (`unigrpo.models.base.Policy`): text in, text out."""

    token_text = TOKEN_TEXT | {"mask": "<|mask|>"}
    module: Decoder

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Decoder:
        """Return the body of a config.json."""
        return Decoder(DecoderConfig.from_dict(config, has_qkv_bias=True))

    @property
    def lora_targets(self) -> list[str]:
        """Return the full names of the seven linear layers of every layer; the head is not among them."""
        return self.module.linear_names

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm, each position's from the one before it."""
        is_visible = visible_keys(model_input.is_padding)
        hidden = self.module(model_input.token_ids, is_visible, model_input.positions)
        if is_visible is None or model_input.is_padding is None:
            return torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        index = predicting_positions(model_input.is_padding)
        return hidden.gather(1, index[..., None].expand_as(hidden))
