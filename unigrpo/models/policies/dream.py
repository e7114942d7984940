"""Dream 7B and DiffuCoder: the Qwen2 body without causal mask, whose output at a position predicts the next one.

Written from the released config keys and tensor names (Dream-org/Dream-v0-Instruct-7B, apple/DiffuCoder-7B-cpGRPO).
The released samplers read position i's logits from output i - 1, and position 0's from its own; `hidden` does that
once, so that nobody else has to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unigrpo.models.base import Abilities
from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.layers.shift import predicting_positions
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import ModelInput


class DreamPolicy(TextPolicy):
    """Dream behind the policy contract (`unigrpo.models.base.Policy`): text in, text out."""

    abilities = Abilities(tasks=("reason",))
    model_types = ("Dream", "dream")
    architectures = ("DreamModel",)
    layouts = r"""
    dream:
      title: Dream, DiffuCoder
      checkpoints: 7B
      golden: dream_tiny
      config: {attention_dropout: 0.0, hidden_act: silu, hidden_size: 64, initializer_range: 0.02,
        intermediate_size: 128, max_position_embeddings: 2048, num_attention_heads: 4, num_hidden_layers: 2,
        num_key_value_heads: 2, rms_norm_eps: 1.0e-06, rope_scaling: null, rope_theta: 1000000.0,
        tie_word_embeddings: false, use_cache: false, max_window_layers: 28, sliding_window: null,
        use_sliding_window: false, architectures: [DreamModel], model_type: Dream}
      ids: {mask_token_id: <|mask|>, eos_token_id: <|endoftext|>, pad_token_id: <|endoftext|>,
        bos_token_id: <|endoftext|>}
      special_tokens: [<|endoftext|>, <|im_start|>, <|im_end|>, <|mask|>]
      chat_template: "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content']\
        \ }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif\
        \ %}"
      bos_token: <|endoftext|>
      eos_token: <|endoftext|>
      releases:
        7b: {hidden_size: 3584, intermediate_size: 18944, num_hidden_layers: 28,
          num_attention_heads: 28, num_key_value_heads: 4, vocab_size: 152064}
    """

    token_text = TOKEN_TEXT | {"mask": "<|mask|>", "eot": "<|im_end|>"}
    greedy: ClassVar[Mapping[str, Any]] = {
        "temperature": 0.1,
        "top_p": 0.9,
        "remasking": "entropy",
        "remasking_temperature": 0.0,
    }
    """The release's own evaluation of its chat model (DreamLM/Dream, eval_instruct/eval.sh). At temperature 0 its users
    find 35 in place of 82 on GSM8K (DreamLM/Dream#56): in the nucleus most positions are equally sure, so that text is
    written from the left; without it the ends are written first."""
    module: Decoder

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Decoder:
        """Return the body of a config.json."""
        return Decoder(DecoderConfig.from_dict(config, has_qkv_bias=True))

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm, each position's from the one before it."""
        is_visible = visible_keys(model_input.is_padding)
        hidden = self.module(model_input.token_ids, is_visible, model_input.positions)
        if is_visible is None or model_input.is_padding is None:
            return torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        index = predicting_positions(model_input.is_padding)
        return hidden.gather(1, index[..., None].expand_as(hidden))
