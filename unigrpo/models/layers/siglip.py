"""The SigLIP vision tower as LLaVA-style checkpoints hold it: without its last layer, its final norm unused, no head.

The layers are transformers' own; google/siglip-so400m-patch14-384 and google/siglip2-so400m-patch14-384 have one
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unigrpo.errors import UserError

if TYPE_CHECKING:
    from transformers import SiglipVisionConfig

TILES_TOGETHER = 8
"""Tiles that go through the tower together: bounds the memory of a picture of many tiles."""
KNOWN_TOWER = "so400m-patch14-384"
"""Part of the names of the released towers, whose sizes are in no config.json of the families."""
SIZES = {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
NUM_LAYERS = 26
"""Layers that the checkpoints hold: one fewer than the tower was trained with."""


def tower_config(config: Mapping[str, Any]) -> SiglipVisionConfig:
    """Return transformers' config of a tower: the sizes of ``vision_config``; keys that are absent are so400m's.

    Args:
        config: of the whole checkpoint; in its tower's part ``num_hidden_layers_in_file`` wins over
            ``num_hidden_layers``, which counts the layer that is dropped.

    Raises:
        UserError: neither sizes nor the name of a known tower, an activation that is not computed here, or a width
            that does not divide into heads.
    """
    from transformers import SiglipVisionConfig

    part = config.get("vision_config") or config.get("_tiny_vision")
    if part is None and KNOWN_TOWER not in str(config.get("mm_vision_tower")):
        raise UserError(
            f"config.json has mm_vision_tower {config.get('mm_vision_tower')!r}; its sizes are known for "
            f"...{KNOWN_TOWER}: add them as vision_config (image_size, patch_size, hidden_size, intermediate_size, "
            "num_hidden_layers_in_file, num_attention_heads)"
        )
    config = part or {}
    sizes = {name: config.get(name, known) for name, known in SIZES.items()}
    num_layers = config.get("num_hidden_layers_in_file", config.get("num_hidden_layers", NUM_LAYERS + 1) - 1)
    if config.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise UserError(f"the vision tower has hidden_act {config['hidden_act']!r}; wanted gelu_pytorch_tanh")
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        raise UserError(f"the vision tower's width {width} does not divide into {heads} heads")
    eps = config.get("layer_norm_eps", 1e-6)
    return SiglipVisionConfig(**sizes, num_hidden_layers=num_layers, layer_norm_eps=eps, vision_use_head=False)


class SiglipTower(nn.Module):
    """The tower as an nn.Module: pixels in, one feature a patch out."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        from transformers import SiglipVisionModel

        super().__init__()
        self.vision_model = SiglipVisionModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [T, K, D] of tiles [T, 3, S, S] in [-1, 1]: the output of the last layer that is kept."""
        embeddings, encoder = self.vision_model.embeddings, self.vision_model.encoder
        parts = [encoder(inputs_embeds=embeddings(part)).last_hidden_state for part in pixels.split(TILES_TOGETHER)]
        return torch.cat(parts)
