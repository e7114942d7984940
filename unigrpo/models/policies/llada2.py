"""LLaDA2.0 and LLaDA2.1: a mixture of experts under block-causal attention.

Written from the released config keys and tensor names (inclusionAI/LLaDA2.0-mini, LLaDA2.0-flash, LLaDA2.1-mini). The
two releases are one network; 2.1 was trained so that its sampler may replace tokens that are there already
(``editing_threshold`` of `unigrpo.rollouts.sample`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from unigrpo.models.base import Abilities
from unigrpo.models.block_policy import BlockPolicy
from unigrpo.models.files.config_file import require_values
from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.attention import Visible, attend
from unigrpo.models.layers.decoder import Decoder, DecoderConfig, KeyValues
from unigrpo.models.layers.experts import ExpertMixture, GroupedSigmoidRouter
from unigrpo.models.layers.norm import RmsNorm
from unigrpo.models.layers.rotary import rotate
from unigrpo.models.layers.swiglu import SwiGlu

BLOCK_LENGTH = 32
"""Block length of the released checkpoints, whose config.json has no block_size."""

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "use_qk_norm": (True,),
    "score_function": ("sigmoid",),
    "moe_router_enable_expert_bias": (True,),
    "tie_word_embeddings": (False,),
    "norm_head": (False,),
}
"""Keys of config.json whose other values are other arithmetic; an absent key has this value."""


class _Attention(nn.Module):
    """Grouped attention with one matrix for queries, keys and values, and a norm on each query and key head."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.heads) * self.head_dim, bias=False)
        self.dense = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)
        self.query_layernorm = RmsNorm(self.head_dim, config.rms_norm_eps)
        self.key_layernorm = RmsNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible, cache: KeyValues | None
    ) -> Tensor:
        """Return [N, L, D]."""
        together = self.query_key_value(hidden).view(*hidden.shape[:2], -1, self.head_dim)
        queries, keys, values = together.split(self.heads, dim=2)
        queries = rotate(self.query_layernorm(queries), cos, signed_sin).transpose(1, 2)
        keys = rotate(self.key_layernorm(keys), cos, signed_sin).transpose(1, 2)
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        return self.dense(attend(queries, keys, values, is_visible).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """One pre-norm layer: attention, then a dense or a mixed feed-forward part."""

    def __init__(self, config: DecoderConfig, layer: int, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = _Attention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp

    def forward(
        self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible, cache: KeyValues | None
    ) -> Tensor:
        """Return [N, L, D]."""
        hidden = hidden + self.attention(self.input_layernorm(hidden), cos, signed_sin, is_visible, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Llada2Model(nn.Module):
    """The level that the released names call ``model``."""

    def __init__(self, config: DecoderConfig, feed_forward: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(_Layer(config, layer, feed_forward(layer)) for layer in layers)
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def embed_tokens(self) -> nn.Module:
        """Return the embedding under the name that `Decoder` reads."""
        return self.word_embeddings


class Llada2Policy(BlockPolicy):
    """LLaDA2.x behind the policy contract (`unigrpo.models.base.BlockCausalPolicy`): text in, text out."""

    abilities = Abilities(tasks=("reason",), attention="block_causal")
    model_types = ("llada2_moe", "llada21_moe")
    architectures = ("LLaDA2MoeModelLM",)
    layouts = r"""
    llada2:
      title: LLaDA2.0
      checkpoints: mini, flash
      golden: llada2_tiny
      config: {attention_dropout: 0.0, block_size: 4, embedding_dropout: 0.0, first_k_dense_replace: 1,
        head_dim: 16, hidden_act: silu, hidden_size: 64, initializer_range: 0.02, intermediate_size: 96,
        max_position_embeddings: 16384, max_window_layers: 28, moe_intermediate_size: 32,
        moe_router_enable_expert_bias: true, n_group: 4, norm_head: false, norm_softmax: false,
        norm_topk_prob: true, num_attention_heads: 4, num_experts: 16, num_experts_per_tok: 4,
        num_hidden_layers: 3, num_key_value_heads: 2, num_shared_experts: 1, output_dropout: 0.0,
        output_router_logits: false, partial_rotary_factor: 0.5, rms_norm_eps: 1.0e-06, rope_scaling: null,
        rope_theta: 600000, rotary_dim: 8, routed_scaling_factor: 2.5, router_dtype: fp32,
        score_function: sigmoid, sliding_window: 4096, tie_word_embeddings: false, topk_group: 2,
        use_bias: false, use_cache: false, use_qk_norm: true, use_qkv_bias: false, use_sliding_window: false,
        architectures: [LLaDA2MoeModelLM], model_type: llada2_moe}
      ids: {mask_token_id: <|mask|>, eos_token_id: <|endoftext|>, pad_token_id: <|endoftext|>}
      special_tokens: [<|startoftext|>, <|endoftext|>, <|mask|>, <role>, </role>, <|role_end|>]
      chat_template: "<role>SYSTEM</role>detailed thinking off<|role_end|>{% for message in messages %}<role>{{\
        \ 'HUMAN' if message['role'] == 'user' else 'ASSISTANT' }}</role>{{ message['content'] }}<|role_end|>{%\
        \ endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
      bos_token: <|startoftext|>
      eos_token: <|endoftext|>
      releases:
        mini: {hidden_size: 2048, num_hidden_layers: 20, num_attention_heads: 16, num_key_value_heads: 4,
          head_dim: 128, rotary_dim: 64, intermediate_size: 5120, num_experts: 256, num_experts_per_tok: 8,
          moe_intermediate_size: 512, n_group: 8, topk_group: 4, vocab_size: 157184, block_size: 32}
        flash: {hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 4,
          head_dim: 128, rotary_dim: 64, intermediate_size: 9216, num_experts: 256, num_experts_per_tok: 8,
          moe_intermediate_size: 1024, n_group: 8, topk_group: 4, vocab_size: 157184, block_size: 32}
    llada21:
      like: llada2
      title: LLaDA2.1
      golden: llada21_tiny
      config: {model_type: llada21_moe}
    """

    token_text = TOKEN_TEXT | {"mask": "<|mask|>", "eot": "<|role_end|>"}

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Decoder:
        """Return the body of a config.json.

        Raises:
            UserError: a value that this code does not compute, or a size that is absent or does not divide.
        """
        require_values(config, SUPPORTED)
        sizes = DecoderConfig.from_dict(config, has_qk_norm=True)
        if not config.get("partial_rotary_factor") and config.get("rotary_dim"):
            sizes = replace(sizes, rotary_fraction=config["rotary_dim"] / sizes.head_dim)
        block_length = int(config.get("block_size") or BLOCK_LENGTH)
        model = _Llada2Model(sizes, lambda layer: _feed_forward(config, layer))
        return Decoder(sizes, model=model, block_length=block_length)


def _feed_forward(config: Mapping[str, Any], layer: int) -> nn.Module:
    width = config["hidden_size"]
    if layer < config.get("first_k_dense_replace", 0):
        return SwiGlu(width, config["intermediate_size"])
    inner, num_shared = config["moe_intermediate_size"], config.get("num_shared_experts") or 0
    router = GroupedSigmoidRouter(
        width,
        config["num_experts"],
        config["num_experts_per_tok"],
        num_groups=config["n_group"],
        num_chosen_groups=config["topk_group"],
        scale=float(config["routed_scaling_factor"]),
    )
    return ExpertMixture(router, width, inner, config["num_experts"], inner * num_shared if num_shared else None)
