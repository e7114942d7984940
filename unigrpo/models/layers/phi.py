"""The Phi-1.5 body of Show-o: transformers' own, with a LayerNorm on every query and key head and our attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PhiConfig, PhiForCausalLM

from unigrpo.errors import UserError
from unigrpo.models.files.config_file import require_sizes, require_values
from unigrpo.models.layers.attention import Visible, attend
from unigrpo.models.layers.head import project

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu_new",),
    "rope_scaling": (None,),
    "attention_dropout": (0.0,),
    "embd_pdrop": (0.0,),
    "resid_pdrop": (0.0,),
    "tie_word_embeddings": (False,),
}
"""Config keys that change the arithmetic, and the values that this code computes; an absent key is the first one."""
ATTENTION = "unigrpo_visible"
"""The name under which transformers finds `attend_visible`."""


def attend_visible(
    layer: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: None, is_visible: Visible, **_: Any
) -> tuple[Tensor, None]:
    """Return [N, L, H, W] of queries, keys and values [N, H, L, W]: `attend` as transformers calls an attention."""
    return attend(queries, keys, values, is_visible).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend_visible)


def body_config(config: Mapping[str, Any], vocab_size: int) -> PhiConfig:
    """Return transformers' config from the content of the language model's config.json.

    Raises:
        UserError: a key whose value this code does not compute, or a size that is absent or does not divide.
    """
    require_values(config, SUPPORTED)
    require_sizes(config, SIZES)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    factor = config.get("partial_rotary_factor", 0.5)
    rotary_width = int(factor * (width // heads))
    if width % heads or rotary_width % 2 or config.get("num_key_value_heads", heads) not in (heads, None):
        raise UserError(
            f"the language model's config has hidden_size {width}, num_attention_heads {heads}, "
            f"num_key_value_heads {config.get('num_key_value_heads')}, {rotary_width} turning components; wanted a "
            "whole width per head, a key head for each, and an even number of turning components"
        )
    theta = float(config.get("rope_theta", 10000.0))
    body = PhiConfig(
        **{name: config[name] for name in SIZES},
        vocab_size=vocab_size,
        layer_norm_eps=float(config.get("layer_norm_eps", 1e-5)),
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor},
        qk_layernorm=True,
        hidden_act="gelu_pytorch_tanh",  # gelu_new in one kernel
    )
    body._attn_implementation = ATTENTION
    return body


class Phi(nn.Module):
    """The body as an nn.Module: token ids and who sees whom in, final hidden states out."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.showo = PhiForCausalLM(config)

    def forward(self, token_ids: Tensor, is_visible: Visible, positions: Tensor | None = None) -> Tensor:
        """Return [N, L, D] after the final norm.

        ``token_ids`` are [N, L]; ``positions`` [N, L] are rotary, None is 0..L-1.
        """
        output = self.showo.model(token_ids, position_ids=positions, use_cache=False, is_visible=is_visible)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] of hidden states [..., D] over a half-open range of ids (None: all of V).

        Raises:
            UserError: a range outside the embedding.
        """
        return project(hidden, self.showo.lm_head, vocabulary_range, self.showo.vocab_size)
