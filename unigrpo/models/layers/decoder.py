"""A pre-norm decoder body under the names of Llama, Qwen2 and Qwen3, without a causal mask of its own.

Families differ in biases, head norms, the feed-forward part and in who sees whom; all of that is given. Norms and
rotary embedding are computed in float32 whatever the dtype of the weights is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unigrpo.errors import UserError
from unigrpo.models.files.config_file import require_sizes
from unigrpo.models.layers.attention import Visible, attend
from unigrpo.models.layers.head import project
from unigrpo.models.layers.norm import RmsNorm
from unigrpo.models.layers.rotary import RotaryTables, rotate
from unigrpo.models.layers.swiglu import SwiGlu
from unigrpo.models.layers.transformers_body import RECOMPUTED

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
"""Keys of config.json without which there is no model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The sizes of a body, under the names of the released config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    """Rows of the embedding and of the head."""
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    has_qkv_bias: bool
    """Whether queries, keys and values have a bias, as in Qwen2."""
    has_qk_norm: bool
    """Whether each query and key head is normed before it is rotated, as in Qwen3."""
    rotary_fraction: float = 1.0
    """Part of a head's components that turn."""

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], *, has_qkv_bias: bool = False, has_qk_norm: bool = False
    ) -> DecoderConfig:
        """Return the sizes from the content of a config.json; the two flags are the family's.

        Raises:
            UserError: a key whose value this code does not compute, or a size that is absent or does not divide.
        """
        _refuse_other_arithmetic(config)
        require_sizes(config, SIZES)
        width, heads = config["hidden_size"], config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or width // heads
        fraction = float(config.get("partial_rotary_factor") or 1.0)
        if head_dim * fraction % 2 or heads % kv_heads or (not config.get("head_dim") and width % heads):
            raise UserError(
                f"config.json has hidden_size {width}, num_attention_heads {heads}, num_key_value_heads {kv_heads}, "
                f"head_dim {config.get('head_dim')}, partial_rotary_factor {fraction}; wanted an even "
                "number of turning components a head, and a whole number of query heads per key head"
            )
        return cls(
            hidden_size=width,
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            rope_theta=float(_rotary_options(config).get("rope_theta") or config.get("rope_theta") or 10000.0),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            has_qkv_bias=has_qkv_bias,
            has_qk_norm=has_qk_norm,
            rotary_fraction=fraction,
        )


def _rotary_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what newer files gather under rope_parameters, and older ones under rope_scaling."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _refuse_other_arithmetic(config: Mapping[str, Any]) -> None:
    options = _rotary_options(config)
    scaling = options.get("rope_type", options.get("type", "default"))
    given = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "rope type": (scaling, "default"),
        "attention_dropout": (config.get("attention_dropout") or 0.0, 0.0),
        "attention_bias": (bool(config.get("attention_bias")), False),
        "mlp_bias": (bool(config.get("mlp_bias")), False),
        "use_sliding_window": (bool(config.get("use_sliding_window")), False),
    }
    for key, (found, wanted) in given.items():
        if found != wanted:
            raise UserError(f"config.json has {key} = {found!r}; this model code computes {wanted!r} only")


class KeyValues(Protocol):
    """Keys and values of earlier positions, and whatever becomes of the new ones."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take a layer's rotated keys and values [N, H, L, W] of the positions that are computed now.

        Returns:
            Keys and values [N, H, L', W] that are attended to, the new ones last.
        """


class Attention(nn.Module):
    """Grouped attention over whatever keys are visible."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        query_width, kv_width = head * config.num_attention_heads, head * config.num_key_value_heads
        self.layer, self.head_dim = layer, head
        self.q_proj = nn.Linear(width, query_width, bias=config.has_qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=config.has_qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=config.has_qkv_bias)
        self.o_proj = nn.Linear(query_width, width, bias=False)
        self.has_qk_norm = config.has_qk_norm
        if config.has_qk_norm:
            self.q_norm = RmsNorm(head, config.rms_norm_eps)
            self.k_norm = RmsNorm(head, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible, cache: KeyValues | None
    ) -> Tensor:
        """Return [N, L, D]."""
        split = (*hidden.shape[:2], -1, self.head_dim)
        queries, keys = self.q_proj(hidden).view(split), self.k_proj(hidden).view(split)
        if self.has_qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries = rotate(queries, cos, signed_sin).transpose(1, 2)
        keys = rotate(keys, cos, signed_sin).transpose(1, 2)
        values = self.v_proj(hidden).view(split).transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = attend(queries, keys, values, is_visible)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention, then the feed-forward part."""

    def __init__(self, config: DecoderConfig, layer: int, mlp: nn.Module | None = None) -> None:
        """Take another feed-forward part than SwiGLU as ``mlp``: [N, L, D] in, [N, L, D] out."""
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = SwiGlu(config.hidden_size, config.intermediate_size) if mlp is None else mlp
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, is_visible: Visible, cache: KeyValues | None
    ) -> Tensor:
        """Return [N, L, D]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, signed_sin, is_visible, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class DecoderModel(nn.Module):
    """The level that the released names call ``model``: embedding, layers, final norm."""

    def __init__(self, config: DecoderConfig, make_mlp: Callable[[int], nn.Module | None]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, make_mlp(layer)) for layer in layers)
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """The body as an nn.Module: token ids in, final hidden states out.

    Args:
        config: sizes and flags.
        make_mlp: from a layer's index to its feed-forward part; None, or a result of None, is SwiGLU.
        model: in place of the level ``model``, with embed_tokens, layers of the same call, and norm.
        block_length: that a block-causal family was trained with.

    Example:
        >>> with torch.device("meta"):
        ...     body = Decoder(DecoderConfig.from_dict(config, has_qk_norm=True))
    """

    def __init__(
        self,
        config: DecoderConfig,
        make_mlp: Callable[[int], nn.Module | None] | None = None,
        model: nn.Module | None = None,
        block_length: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.model: Any = model or DecoderModel(config, make_mlp or (lambda _layer: None))
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.block_length = block_length
        self.is_checkpointing = False
        """Whether each layer is computed again in backward: less memory, more time."""
        self._rotary = RotaryTables(int(config.head_dim * config.rotary_fraction), config.rope_theta)

    def forward(
        self,
        token_ids: Tensor | None,
        is_visible: Visible = None,
        positions: Tensor | None = None,
        *,
        embedded: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Return [N, L, D] after the final norm.

        Args:
            token_ids: [N, L]; not looked at where ``embedded`` is given.
            is_visible: as `unigrpo.models.layers.attention.visible_keys` and ``mask_pieces`` make it; None is all keys.
            positions: [N, L] rotary positions; None is 0..L-1.
            embedded: [N, L, D] in place of the embedding, where pictures stand among the tokens.
            cache: earlier keys and values; not with gradient checkpointing.
        """
        hidden = self.model.embed_tokens(token_ids) if embedded is None else embedded
        tables = self._rotary.of(positions, hidden)
        is_recomputed = self.is_checkpointing and torch.is_grad_enabled()
        run: Callable[..., Tensor] = RECOMPUTED if is_recomputed else operator.call
        for layer in self.model.layers:
            hidden = run(layer, hidden, *tables, is_visible, cache)
        return self.model.norm(hidden)

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] of hidden states [..., D] over a half-open range of ids (None: all of V).

        Raises:
            UserError: a range outside the embedding.
        """
        layer = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return project(hidden, layer, vocabulary_range, self.config.vocab_size)
