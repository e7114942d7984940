"""SDAR and TraDo: the Qwen3 body, dense or with a mixture of experts, under block-causal attention.

Written from the released config keys and tensor names (JetLM/SDAR-1.7B-Chat to SDAR-30B-A3B-Chat, Gen-Verse/TraDo-8B).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from unigrpo.models.base import Abilities
from unigrpo.models.block_policy import BlockPolicy
from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.layers.experts import ExpertMixture, SoftmaxRouter

BLOCK_LENGTH = 4
"""Block length of the checkpoints whose config.json has no block_size."""


class SdarPolicy(BlockPolicy):
    """SDAR behind the policy contract (`unigrpo.models.base.BlockCausalPolicy`): text in, text out."""

    abilities = Abilities(tasks=("reason",), attention="block_causal")
    model_types = ("sdar", "sdar_moe")
    architectures = ("SDARForCausalLM", "SDARMoeForCausalLM")
    released_sizes = """
    sdar-8b: &size {num_layers: 36, width: 4096, mlp_width: 12288, vocabulary: 151936, num_parameters: 8190735360,
        linears: {q_proj: 294912, k_proj: 184320, v_proj: 184320, o_proj: 294912, gate_proj: 589824, up_proj: 589824,
        down_proj: 589824}}
    trado-8b: *size
    """
    layouts = r"""
    sdar:
      like: dream
      title: SDAR, TraDo
      checkpoints: 1.7B, 4B, 8B
      golden: sdar_tiny
      config: {attention_bias: false, block_size: 4, fuse_cross_entropy: false, head_dim: 16,
        architectures: [SDARForCausalLM], model_type: sdar}
      ids: {mask_token_id: <|MASK|>, eos_token_id: <|im_end|>, pad_token_id: <|endoftext|>,
        bos_token_id: <|endoftext|>}
      special_tokens: [<|endoftext|>, <|im_start|>, <|im_end|>, <|MASK|>]
      eos_token: <|im_end|>
      releases:
        8b: {hidden_size: 4096, intermediate_size: 12288, num_hidden_layers: 36, head_dim: 128,
          num_attention_heads: 32, num_key_value_heads: 8, vocab_size: 151936}
    sdar_moe:
      like: sdar
      title: SDAR, mixture of experts
      checkpoints: 30B-A3B
      compared_with: '`sdar_tiny`; experts: a slow loop'
      config: {architectures: [SDARMoeForCausalLM], model_type: sdar_moe, decoder_sparse_step: 1,
        mlp_only_layers: [], moe_intermediate_size: 32, norm_topk_prob: true, num_experts: 8,
        num_experts_per_tok: 2, output_router_logits: false, router_aux_loss_coef: 0.001}
      releases:
        30b-a3b: {hidden_size: 2048, intermediate_size: 6144, num_hidden_layers: 48, head_dim: 128,
          num_attention_heads: 32, num_key_value_heads: 4, vocab_size: 151936, num_experts: 128,
          num_experts_per_tok: 8, moe_intermediate_size: 768}
      golden: ''
    """

    token_text = TOKEN_TEXT | {"mask": "<|MASK|>", "eot": "<|im_end|>"}

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Decoder:
        """Return the body of a config.json."""
        sizes = DecoderConfig.from_dict(config, has_qk_norm=True)
        block_length = int(config.get("block_size") or BLOCK_LENGTH)
        return Decoder(sizes, lambda layer: _experts(config, layer), block_length=block_length)


def _experts(config: Mapping[str, Any], layer: int) -> nn.Module | None:
    """Return the mixture of a layer, or None where it has the dense part, as Qwen3's MoE layout has it."""
    num_experts = config.get("num_experts") or 0
    step = config.get("decoder_sparse_step") or 1
    if not num_experts or layer in (config.get("mlp_only_layers") or ()) or (layer + 1) % step:
        return None
    router = SoftmaxRouter(
        config["hidden_size"],
        num_experts,
        config["num_experts_per_tok"],
        is_normalized=bool(config.get("norm_topk_prob", False)),
    )
    return ExpertMixture(router, config["hidden_size"], config["moe_intermediate_size"], num_experts)
