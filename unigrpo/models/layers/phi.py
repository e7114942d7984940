"""The Phi-1.5 body: attention and feed-forward part side by side behind one norm, half of a head's components turned.

Under the names that Show-o gives it, with its LayerNorm on every query and key head. Biases everywhere, the head too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from unigrpo.errors import UserError
from unigrpo.models.files.config_file import require_sizes, require_values
from unigrpo.models.layers.attention import Visible, attend
from unigrpo.models.layers.head import project
from unigrpo.models.layers.rotary import RotaryTables, rotate

PHI_LINEARS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PhiConfig:
    """The sizes of a body, under the names of the released config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    """Rows of the embedding and of the head."""
    layer_norm_eps: float
    rope_theta: float
    rotary_width: int
    """Components of a head that turn."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], vocab_size: int) -> PhiConfig:
        """Return the sizes from the content of the language model's config.json.

        Raises:
            ValueError: a key whose value this code does not compute, or a size that is absent or does not divide.
        """
        require_values(config, SUPPORTED)
        require_sizes(config, SIZES)
        width, heads = config["hidden_size"], config["num_attention_heads"]
        rotary_width = int(config.get("partial_rotary_factor", 0.5) * (width // heads))
        if width % heads or rotary_width % 2 or config.get("num_key_value_heads", heads) not in (heads, None):
            raise UserError(
                f"the language model's config has hidden_size {width}, num_attention_heads {heads}, "
                f"num_key_value_heads {config.get('num_key_value_heads')}, {rotary_width} turning components; wanted a "
                "whole width per head, a key head for each, and an even number of turning components"
            )
        return cls(
            hidden_size=width,
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            vocab_size=vocab_size,
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-5)),
            rope_theta=float(config.get("rope_theta", 10000.0)),
            rotary_width=rotary_width,
        )


class PhiAttention(nn.Module):
    """Attention over whatever keys are visible, with normed and partly turned query and key heads."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.q_layernorm = nn.LayerNorm(self.head_width, eps=config.layer_norm_eps)
        self.k_layernorm = nn.LayerNorm(self.head_width, eps=config.layer_norm_eps)

    def forward(self, normed: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible) -> Tensor:
        """Return [N, L, D]."""
        split = (*normed.shape[:2], -1, self.head_width)
        queries = rotate(self.q_layernorm(self.q_proj(normed).view(split)), cos, signed_sin)
        keys = rotate(self.k_layernorm(self.k_proj(normed).view(split)), cos, signed_sin)
        values = self.v_proj(normed).view(split)
        mixed = attend(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_visible)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class PhiMlp(nn.Module):
    """``fc2(gelu(fc1))`` with the tanh form of gelu."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, normed: Tensor) -> Tensor:
        """Return [..., D]."""
        return self.fc2(functional.gelu(self.fc1(normed), approximate="tanh"))


class PhiLayer(nn.Module):
    """One layer: both parts read the same normed input, and their sum is added."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = PhiAttention(config)
        self.mlp = PhiMlp(config)

    def forward(self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible) -> Tensor:
        """Return [N, L, D]."""
        normed = self.input_layernorm(hidden)
        return self.self_attn(normed, cos, signed_sin, is_visible) + self.mlp(normed) + hidden


class PhiModel(nn.Module):
    """The level that the released names call ``model``: embedding, layers, final norm."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(PhiLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class PhiForTokens(nn.Module):
    """The level that Show-o calls ``showo``: the model and its head."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.model = PhiModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)


class Phi(nn.Module):
    """The body as an nn.Module: token ids and who sees whom in, final hidden states out."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.config = config
        self.showo = PhiForTokens(config)
        self.is_checkpointing = False
        """Whether each layer is computed again in backward: less memory, more time."""
        self._rotary = RotaryTables(config.rotary_width, config.rope_theta)

    def forward(self, token_ids: Tensor, is_visible: Visible, positions: Tensor | None = None) -> Tensor:
        """Return [N, L, D] after the final norm.

        Args:
            token_ids: [N, L].
            is_visible: see `unigrpo.models.layers.attention.Visible`.
            positions: [N, L] rotary positions; None is 0..L-1.
        """
        model = self.showo.model
        hidden = model.embed_tokens(token_ids)
        tables = self._rotary.of(positions, hidden)
        is_recomputed = self.is_checkpointing and torch.is_grad_enabled()
        for layer in model.layers:
            if is_recomputed:
                hidden = checkpoint(layer, hidden, *tables, is_visible, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(hidden, *tables, is_visible)
        return model.final_layernorm(hidden)

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] of hidden states [..., D] over a half-open range of ids (None: all of V).

        Raises:
            ValueError: a range outside the embedding.
        """
        return project(hidden, self.showo.lm_head, vocabulary_range, self.config.vocab_size)
