"""SDAR and TraDo: the Qwen3 body, dense or with a mixture of experts, under block-causal attention.

Written from the released config keys and tensor names (JetLM/SDAR-1.7B-Chat to SDAR-30B-A3B-Chat, Gen-Verse/TraDo-8B).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from unigrpo.models.block_policy import BlockDecoder, BlockPolicy
from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.decoder import DecoderConfig
from unigrpo.models.layers.experts import ExpertMixture, SoftmaxRouter

BLOCK_LENGTH = 4
"""Of the checkpoints whose config.json has no block_size."""


class SdarPolicy(BlockPolicy):
    """SDAR behind the policy contract (`unigrpo.models.base.BlockCausalPolicy`): text in, text out."""

    token_text = TOKEN_TEXT | {"mask": "<|MASK|>"}

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> BlockDecoder:
        """Return the body of a config.json."""
        sizes = DecoderConfig.from_dict(config, has_qk_norm=True)
        block_length = int(config.get("block_size") or BLOCK_LENGTH)
        return BlockDecoder(sizes, block_length, lambda layer: _experts(config, layer))


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
