"""LLaDA-V: the LLaDA body under Llama's names, with a SigLIP2 tower whose tiles are not pooled.

Written from the conversion script's names, the training configs and the tensors of ML-GSAI/LLaDA-V. The body is
bidirectional; in a conversation the answers end with ``<|eot_id|>``, and the released sampler never draws the ids that
end, start or head a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from unigrpo.models.base import Abilities
from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.llava import LlavaPolicy, VisionEncoder, embed
from unigrpo.types import ModelInput


class _LladaV(Decoder):
    """The body with its vision encoder."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        sizes = DecoderConfig.from_dict({"rms_norm_eps": 1e-5, **config})
        super().__init__(sizes)
        self.vision_encoder = VisionEncoder(self.model, config, sizes.hidden_size)


class LladaVPolicy(LlavaPolicy):
    """LLaDA-V behind the policy contract (`unigrpo.models.base.Policy`): pictures and text in, text out."""

    abilities = Abilities(tasks=("reason", "understand"), pictures="pixels")
    architectures = ("LlavaLLaDAModelLM",)
    hub_names = ("llada-v",)
    layouts = r"""
    llada_v:
      title: LLaDA-V
      checkpoints: 8B
      golden: lladav_tiny
      config: {attention_dropout: 0.0, hidden_act: silu, hidden_size: 64, initializer_range: 0.02,
        intermediate_size: 128, max_position_embeddings: 16384, num_attention_heads: 4, num_hidden_layers: 2,
        num_key_value_heads: 4, rms_norm_eps: 1.0e-05, rope_scaling: null, rope_theta: 500000.0,
        tie_word_embeddings: false, use_cache: false, image_aspect_ratio: anyres_max_4, mm_hidden_size: 48,
        mm_patch_merge_type: spatial_unpad, mm_projector_type: mlp2x_gelu, mm_use_im_patch_token: false,
        mm_use_im_start_end: false, mm_vision_select_feature: patch, mm_vision_select_layer: -2,
        model_type: llava_llada, tokenizer_padding_side: right, use_mm_proj: true, architectures: [
          LlavaLLaDAModelLM], attention_bias: false, image_grid_pinpoints: [[56, 56], [56,
            112], [112, 56], [112, 112]], mm_newline_position: one_token, mm_spatial_pool_mode: bilinear,
        mm_spatial_pool_stride: null, mm_vision_tower: 'tiny SigLIP, in these files', pretraining_tp: 1,
        tokenizer_model_max_length: 8192, _tiny_vision: {image_size: 56, patch_size: 8, hidden_size: 48,
          intermediate_size: 96, num_hidden_layers_in_file: 2, num_attention_heads: 4, layer_norm_eps: 1.0e-06,
          hidden_act: gelu_pytorch_tanh}}
      ids: {mask_token_id: <|mdm_mask|>, eos_token_id: <|endoftext|>, pad_token_id: <|endoftext|>}
      special_tokens: [<|startoftext|>, <|endoftext|>, <|mdm_mask|>, <|start_header_id|>, <|end_header_id|>,
        <|eot_id|>]
      chat_template: "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif\
        \ %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{\
        \ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt\
        \ %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
      bos_token: <|startoftext|>
      eos_token: <|endoftext|>
      releases:
        8b: {hidden_size: 4096, intermediate_size: 12288, num_hidden_layers: 32,
          num_attention_heads: 32, num_key_value_heads: 32, vocab_size: 126464,
          mm_hidden_size: 1152, mm_vision_tower: google/siglip2-so400m-patch14-384,
          _tiny_vision: null, image_grid_pinpoints: [[384, 384], [384, 768],
            [384, 1152], [384, 1536], [384, 1920], [384, 2304], [768, 384], [
              768, 768], [768, 1152], [768, 1536], [768, 1920], [768, 2304],
            [1152, 384], [1152, 768], [1152, 1152], [1152, 1536], [1152, 1920],
            [1152, 2304], [1536, 384], [1536, 768], [1536, 1152], [1536, 1536],
            [1536, 1920], [1536, 2304], [1920, 384], [1920, 768], [1920, 1152],
            [1920, 1536], [1920, 1920], [1920, 2304], [2304, 384], [2304, 768],
            [2304, 1152], [2304, 1536], [2304, 1920], [2304, 2304]]}
    """

    module: _LladaV

    def __init__(self, **given: Any) -> None:
        """Take what every policy takes; a completion ends with the end of the turn, where its id is known."""
        super().__init__(**given)
        special = self.vocabulary.special or {}
        self.banned_ids = (
            *{
                self.vocabulary.pad_token_id,
                *(special[name] for name in ("bos", "start_header", "end_header") if name in special),
            },
        )
        if "eot" in special:
            ends = self.vocabulary.ends
            self.vocabulary = replace(self.vocabulary, eos_token_id=special["eot"], other_ends=ends)

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> _LladaV:
        """Return the body of a config.json."""
        return _LladaV(config)

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm."""
        embedded = embed(self.module.model.embed_tokens, model_input.token_ids, model_input.image_features)
        return self.module(None, visible_keys(model_input.is_padding), model_input.positions, embedded=embedded)
