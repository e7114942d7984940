"""The LLaDA body: a pre-norm Llama block without causal mask, in the tensor layout of the released checkpoints.

MMaDA runs on the same body with a larger vocabulary, LaViDa with a vision encoder. Written from the released config
keys and tensor names (GSAI-ML/LLaDA-8B, Gen-Verse/MMaDA-8B); the arithmetic that must be kept is RMSNorm and rotary
embedding in float32, half-split rotation, absolute positions, and no bias anywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unigrpo.errors import UserError
from unigrpo.models.files.config_file import require_values
from unigrpo.models.layers.attention import Visible, attend, visible_keys
from unigrpo.models.layers.head import project
from unigrpo.models.layers.norm import RmsNorm
from unigrpo.models.layers.rotary import RotaryTables, rotate
from unigrpo.models.layers.transformers_body import RECOMPUTED

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a block's rotated keys and its values [N, L, H, W] to those that are attended to [N, L', H, W]."""

MLP_TOKENS = 512
"""Tokens that go through an MLP together on a CPU, with and without gradient, so that both round alike."""

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_scaling": (None,),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "clip_qkv": (None,),
    "attention_dropout": (0.0,),
    "embedding_dropout": (0.0,),
    "residual_dropout": (0.0,),
}
"""Config keys that change the arithmetic, and the values that this code computes; an absent key is the first one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LladaConfig:
    """The sizes of a body."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    embedding_size: int
    """Rows of the embedding and of the head."""
    rope_theta: float
    rms_norm_eps: float
    weight_tying: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LladaConfig:
        """Return the sizes from the content of a config.json.

        Raises:
            UserError: a key whose value this code does not compute, or a size that is absent or does not divide.
        """
        require_values(config, SUPPORTED)
        missing = [key for key in ("d_model", "n_layers", "n_heads") if not config.get(key)]
        rows = config.get("embedding_size") or config.get("vocab_size")
        if missing or not rows:
            raise UserError(
                f"config.json lacks {', '.join(missing) or 'embedding_size and vocab_size'}: sizes of the model"
            )
        heads = config["n_heads"]
        kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
        if config["d_model"] % (2 * heads) or heads % kv_heads:
            raise UserError(
                f"config.json has d_model {config['d_model']}, n_heads {heads}, n_kv_heads {kv_heads}; wanted an even "
                "width per head and a whole number of query heads per key head"
            )
        return cls(
            d_model=config["d_model"],
            n_layers=config["n_layers"],
            n_heads=heads,
            n_kv_heads=kv_heads,
            mlp_hidden_size=config.get("mlp_hidden_size") or int(config.get("mlp_ratio", 4) * config["d_model"]),
            embedding_size=rows,
            rope_theta=float(config.get("rope_theta", 10000.0)),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-5)),
            weight_tying=bool(config.get("weight_tying", False)),
        )

    @property
    def head_width(self) -> int:
        """Return the width of one attention head."""
        return self.d_model // self.n_heads


class Block(nn.Module):
    """One pre-norm layer: full bidirectional attention, then SwiGLU."""

    def __init__(self, config: LladaConfig) -> None:
        super().__init__()
        width, inner = config.d_model, config.mlp_hidden_size
        kv_width = config.n_kv_heads * config.head_width
        self.head_width = config.head_width
        self.attn_norm = RmsNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RmsNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)

    def forward(
        self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible, extend: Extend | None = None
    ) -> Tensor:
        """Return [N, L, D]; see `unigrpo.models.layers.attention.Visible` and ``Extend``."""
        split = (*hidden.shape[:2], -1, self.head_width)
        normed = self.attn_norm(hidden)
        queries = rotate(self.q_proj(normed).view(split), cos, signed_sin)
        keys = rotate(self.k_proj(normed).view(split), cos, signed_sin)
        values = self.v_proj(normed).view(split)
        if extend is not None:
            keys, values = extend(keys, values)
        mixed = attend(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_visible)
        hidden = self.attn_out(mixed.transpose(1, 2).reshape(hidden.shape)).add_(hidden)
        normed = self.ff_norm(hidden).flatten(0, 1)
        parts = normed.split(MLP_TOKENS) if normed.device.type == "cpu" else (normed,)
        return torch.cat([self._mlp(part) for part in parts]).view_as(hidden).add_(hidden)

    def _mlp(self, normed: Tensor) -> Tensor:
        gate, up = self.ff_proj(normed), self.up_proj(normed)
        gated = functional.silu(gate) * up if torch.is_grad_enabled() else functional.silu(gate, inplace=True).mul_(up)
        return self.ff_out(gated)


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head, under the released names."""

    def __init__(self, config: LladaConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.embedding_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RmsNorm(config.d_model, config.rms_norm_eps)
        if not config.weight_tying:
            self.ff_out = nn.Linear(config.d_model, config.embedding_size, bias=False)


class LladaModel(nn.Module):
    """The level that the released names call ``model``."""

    def __init__(self, config: LladaConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)


class Llada(nn.Module):
    """The body as an nn.Module: token ids in, final hidden states out.

    Example:
        >>> with torch.device("meta"):
        ...     body = Llada(LladaConfig.from_dict(config))
    """

    def __init__(self, config: LladaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LladaModel(config)
        self.is_checkpointing = False
        """Whether each block is computed again in backward: less memory, more time."""
        self._rotary = RotaryTables(config.head_width, config.rope_theta)

    def forward(self, token_ids: Tensor, is_padding: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Return [N, L, D] after the final norm; the arguments are the fields of ModelInput."""
        return self.through(self.model.transformer.wte(token_ids), visible_keys(is_padding), positions)

    def through(
        self, hidden: Tensor, is_visible: Visible, positions: Tensor | None, extends: Sequence[Extend] | None = None
    ) -> Tensor:
        """Return [N, L, D] after the final norm, from embedded tokens.

        Args:
            hidden: [N, L, D].
            is_visible: see `unigrpo.models.layers.attention.Visible`.
            positions: [N, L] rotary positions; None is 0..L-1.
            extends: one a block; not with gradient.
        """
        transformer = self.model.transformer
        tables = self._rotary.of(positions, hidden)
        is_recomputed = self.is_checkpointing and torch.is_grad_enabled()
        run: Callable[..., Tensor] = RECOMPUTED if is_recomputed else operator.call
        for index, block in enumerate(transformer.blocks):
            hidden = run(block, hidden, *tables, is_visible, None if extends is None else extends[index])
        return transformer.ln_f(hidden)

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] of hidden states [..., D] over a half-open range of ids (None: all of V).

        Raises:
            UserError: a range outside the embedding.
        """
        transformer = self.model.transformer
        layer = transformer.wte if self.config.weight_tying else transformer.ff_out
        return project(hidden, layer, vocabulary_range, self.config.embedding_size)
