"""LLaDA: the body of `unigrpo.models.layers.llada`, text in and text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigrpo.models.base import Abilities
from unigrpo.models.layers.llada import Llada, LladaConfig
from unigrpo.models.text_policy import TextPolicy


class LladaPolicy(TextPolicy):
    """LLaDA behind the policy contract (`unigrpo.models.base.Policy`): text in, text out."""

    abilities = Abilities(tasks=("reason",))
    model_types = ("llada",)
    architectures = ("LLaDAModelLM",)
    released_sizes = """
    llada-8b: {num_layers: 32, width: 4096, mlp_width: 12288, vocabulary: 126464, num_parameters: 8015581184, linears: {
        q_proj: 262144, k_proj: 262144, v_proj: 262144, attn_out: 262144, ff_proj: 524288, up_proj: 524288,
        ff_out: 524288}}
    """
    layouts = r"""
    llada:
      title: LLaDA
      checkpoints: 8B Base, 8B Instruct, 1.5 8B
      golden: llada_tiny
      config: {d_model: 64, n_layers: 2, n_heads: 4, n_kv_heads: 4, mlp_hidden_size: 128, mlp_ratio: 4,
        activation_type: silu, alibi: false, alibi_bias_max: 8.0, attention_dropout: 0.0, attention_layer_norm: false,
        attention_layer_norm_with_affine: true, bias_for_layer_norm: false, block_group_size: 1,
        block_type: llama, embedding_dropout: 0.0, flash_attention: false, include_bias: false,
        include_qkv_bias: false, init_cutoff_factor: null, init_device: cpu, init_fn: mitchell,
        init_std: 0.02, input_emb_norm: false, layer_norm_type: rms, layer_norm_with_affine: true,
        max_sequence_length: 4096, multi_query_attention: null, precision: amp_bf16, residual_dropout: 0.0,
        rms_norm_eps: 1.0e-05, rope: true, rope_full_precision: true, rope_theta: 500000.0, scale_logits: false,
        tie_word_embeddings: false, use_cache: false, weight_tying: false, architectures: [LLaDAModelLM],
        model_type: llada}
      ids: {mask_token_id: <|mdm_mask|>, eos_token_id: <|endoftext|>, pad_token_id: <|endoftext|>}
      special_tokens: [<|startoftext|>, <|endoftext|>, <|mdm_mask|>, <|start_header_id|>, <|end_header_id|>,
        <|eot_id|>]
      chat_template: "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif\
        \ %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{\
        \ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt\
        \ %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
      bos_token: <|startoftext|>
      eos_token: <|endoftext|>
      vocabulary_keys: [vocab_size, embedding_size]
      layers_key: n_layers
      width_key: d_model
      releases:
        8b: {d_model: 4096, n_layers: 32, n_heads: 32, n_kv_heads: 32, mlp_hidden_size: 12288,
          vocab_size: 126464, embedding_size: 126464}
    """

    module: Llada

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Llada:
        """Return the body of a config.json."""
        return Llada(LladaConfig.from_dict(config))
