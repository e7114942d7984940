"""The SigLIP vision tower as LLaVA-style checkpoints hold it: without its last layer, its final norm unused, no head.

Written from the tensor names and sizes of google/siglip-so400m-patch14-384 and google/siglip2-so400m-patch14-384, which
have one arithmetic: patches by a convolution, learnt positions, pre-norm layers, tanh-approximated GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unigrpo.errors import UserError

TILES_TOGETHER = 8
"""Tiles that go through the tower together: bounds the memory of a picture of many tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiglipConfig:
    """The sizes of a tower."""

    image_size: int = 384
    """Side of a tile in pixels."""
    patch_size: int = 14
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 26
    """Layers that the checkpoint holds: one fewer than the tower was trained with."""
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Return the patches along a side of a tile."""
        return self.image_size // self.patch_size

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SiglipConfig:
        """Return the sizes from the tower's part of a config.json; keys that are absent are so400m's.

        Args:
            config: the tower's part, where ``num_hidden_layers_in_file`` wins over ``num_hidden_layers``, which counts
                the layer that is dropped.

        Raises:
            ValueError: an activation that is not computed here, or a width that does not divide into heads.
        """
        given = {name: config[name] for name in cls.__slots__ if name in config}
        if "num_hidden_layers_in_file" in config:
            given["num_layers"] = config["num_hidden_layers_in_file"]
        elif "num_hidden_layers" in config:
            given["num_layers"] = config["num_hidden_layers"] - 1
        sizes = cls(**given)
        if config.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
            raise UserError(f"the vision tower has hidden_act {config['hidden_act']!r}; wanted gelu_pytorch_tanh")
        if sizes.hidden_size % sizes.num_attention_heads:
            raise UserError(
                f"the vision tower's width {sizes.hidden_size} does not divide into {sizes.num_attention_heads} heads"
            )
        return sizes


class SiglipAttention(nn.Module):
    """Full attention over the patches of a tile."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [T, K, D]."""
        parts = (layer(hidden) for layer in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class SiglipMlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [T, K, D]."""
        return self.fc2(functional.gelu(self.fc1(hidden), approximate="tanh"))


class SiglipLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMlp(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [T, K, D]."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class SiglipEmbeddings(nn.Module):
    """Patches and their positions."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, kernel_size=size, stride=size)
        self.position_embedding = nn.Embedding(config.side**2, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [T, K, D] of pixels [T, 3, S, S] in [-1, 1], row by row of patches."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class SiglipEncoder(nn.Module):
    """The level that the released names call ``encoder``."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.num_layers))


class SiglipVision(nn.Module):
    """The level that the released names call ``vision_model``; its last norm is in the files and never applied."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class SiglipTower(nn.Module):
    """The tower as an nn.Module: pixels in, one feature a patch out."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = SiglipVision(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [T, K, D] of tiles [T, 3, S, S] in [-1, 1]: the output of the last layer that is kept."""
        return torch.cat([self._features(part) for part in pixels.split(TILES_TOGETHER)])

    def _features(self, pixels: Tensor) -> Tensor:
        hidden = self.vision_model.embeddings(pixels.to(self.vision_model.embeddings.patch_embedding.weight.dtype))
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden)
        return hidden
