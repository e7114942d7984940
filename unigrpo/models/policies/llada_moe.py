"""LLaDA-MoE 7B-A1B: a Llama body with normed query and key heads whose feed-forward parts are mixtures of experts.

Written from the released config keys and tensor names (inclusionAI/LLaDA-MoE-7B-A1B). Full bidirectional attention; the
router's probabilities are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unigrpo.errors import UserError
from unigrpo.models.base import Abilities
from unigrpo.models.files.config_file import require_sizes, require_values
from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.layers.experts import ExpertMixture, SoftmaxRouter
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import ModelInput

SIZES = ("num_experts", "num_experts_per_tok", "expert_intermediate_size", "num_hidden_layers")
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "moe_router_score_function": ("softmax",),
    "moe_router_enable_expert_bias": (False, None),
    "router_num_group": (None, 1),
    "routed_scaling_factor": (1, None),
    "norm_topk_prob": (None, False),
    "shared_expert_intermediate_size": (None, 0),
    "qk_layernorm": (True,),
    "clip_qkv": (None,),
}
"""Config keys that would change the arithmetic, and the values that this code computes; an absent key is the first."""


class LladaMoePolicy(TextPolicy):
    """LLaDA-MoE behind the policy contract (`unigrpo.models.base.Policy`): text in, text out."""

    abilities = Abilities(tasks=("reason",))
    model_types = ("lladamoe",)
    architectures = ("LLaDAMoEModelLM",)
    borrowed_types = ("llada",)  # its own configuration class is called LLaDAConfig, and may have written LLaDA's type
    layouts = r"""
    llada_moe:
      title: LLaDA-MoE
      checkpoints: 7B-A1B
      golden: lladamoe_tiny
      config: {architectures: [LLaDAMoEModelLM], model_type: lladamoe, attention_bias: false,
        attention_dropout: 0.0, clip_qkv: null, dense_intermediate_size: 96, expert_intermediate_size: 32,
        hidden_act: silu, hidden_size: 64, initializer_range: 0.02, max_position_embeddings: 8192,
        moe_layer_freq: [1, 1, 1], moe_router_enable_expert_bias: false, norm_topk_prob: null,
        moe_router_score_function: softmax, num_attention_heads: 4, num_experts: 16, num_experts_per_tok: 4,
        num_hidden_layers: 3, num_key_value_heads: 4, output_router_logits: false, partial_rotary_factor: 1,
        qk_layernorm: true, rms_norm_eps: 1.0e-05, rope_scaling: null, rope_theta: 50000,
        routed_scaling_factor: 1, router_aux_loss_coef: 0.01, router_num_group: null,
        router_topk_group: null, shared_expert_intermediate_size: null, tie_word_embeddings: false,
        use_cache: false}
      ids: {mask_token_id: <|mask|>, eos_token_id: <|endoftext|>, pad_token_id: <|endoftext|>}
      special_tokens: [<|startoftext|>, <|endoftext|>, <|mask|>, <role>, </role>, <|role_end|>]
      chat_template: "<role>SYSTEM</role>detailed thinking off<|role_end|>{% for message in messages %}<role>{{\
        \ 'HUMAN' if message['role'] == 'user' else 'ASSISTANT' }}</role>{{ message['content'] }}<|role_end|>{%\
        \ endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
      bos_token: <|startoftext|>
      eos_token: <|endoftext|>
      releases:
        7b-a1b: {hidden_size: 2048, num_hidden_layers: 16, num_attention_heads: 16, num_key_value_heads: 16,
          num_experts: 64, num_experts_per_tok: 8, expert_intermediate_size: 1024, vocab_size: 157184}
    """

    token_text = TOKEN_TEXT | {"mask": "<|mask|>", "eot": "<|role_end|>"}
    module: Decoder

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Decoder:
        """Return the body of a config.json.

        Raises:
            UserError: a key whose value this code does not compute, or a size that is absent or does not fit.
        """
        require_values(config, SUPPORTED)
        require_sizes(config, SIZES)
        dense = config.get("dense_intermediate_size") or config["expert_intermediate_size"]
        num_layers = config["num_hidden_layers"]
        is_mixture = config.get("moe_layer_freq") or [1] * num_layers
        if len(is_mixture) != num_layers:
            raise UserError(f"config.json has moe_layer_freq for {len(is_mixture)} of {num_layers} layers")

        def make_mlp(layer: int) -> nn.Module | None:
            if not is_mixture[layer]:
                return None
            width, num_experts = config["hidden_size"], config["num_experts"]
            router = SoftmaxRouter(width, num_experts, config["num_experts_per_tok"])
            return ExpertMixture(router, width, config["expert_intermediate_size"], num_experts)

        sizes = DecoderConfig.from_dict(dict(config) | {"intermediate_size": dense}, has_qk_norm=True)
        return Decoder(sizes, make_mlp)

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm."""
        return self.module(model_input.token_ids, visible_keys(model_input.is_padding), model_input.positions)
