"""ImageReward's network on transformers' BLIP classes: a picture encoder, a text encoder that looks at it, five layers.

The published checkpoint was made with classes that no longer import beside a present transformers; its tensors fit
transformers' own BLIP classes one by one (Xu et al., arXiv 2304.05977, section 3.2 and the released code). Four
defaults of those classes would change every score without an error, so they are given here: the text encoder's 12
heads (default 8), the picture encoder's layer-norm epsilon of 1e-6 (default 1e-5), text attention that is not causal
although cross-attention exists only in a decoder, and a mask on the prompt's padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the data it was trained on."""
MAX_TOKENS = 35
NUM_VISION_HEADS, NUM_TEXT_HEADS = 16, 12
_VISION_EPS, _TEXT_EPS = 1e-6, 1e-12
_PIXEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
_PIXEL_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)
_MAX_ASPECT = 16
"""Of a picture whose short side is resized: what lies further out is cut before, as it would be after."""

_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
_RENAMED = (
    ("blip.text_encoder.", "text."),
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a checkpoint's tensors say about its network; heads leave no trace in them."""

    vision_width: int
    vision_depth: int
    vision_hidden: int
    patch_size: int
    image_size: int
    text_width: int
    text_depth: int
    text_hidden: int
    vocabulary: int
    max_positions: int
    head_widths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blip:
    """The network of a checkpoint, in float32."""

    sizes: Sizes
    modules: torch.nn.ModuleDict
    """vision, text and head."""

    def scores(self, pixels: torch.Tensor, token_ids: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
        """Return [N] normalised scores.

        Args:
            pixels: [N, 3, S, S] float32, of :func:`pixels_of`.
            token_ids: [N, L] int64, padded on the right.
            is_token: [N, L] int64, 0 on the padding.
        """
        import torch

        with torch.no_grad():
            seen = self.modules["vision"](pixels).last_hidden_state  # pooler_output has been through the norm twice.
            state = self.modules["text"](
                token_ids,
                attention_mask=is_token,
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
                is_decoder=False,
            ).last_hidden_state[:, 0]
            scores: torch.Tensor = (self.modules["head"](state)[:, 0] - MEAN) / STD
            return scores


def load_blip(tensors: Mapping[str, torch.Tensor], *, num_vision_heads: int, num_text_heads: int) -> Blip:
    """Return the network of a checkpoint under its published names.

    Raises:
        ValueError: if a tensor is missing, is not known or does not fit, or the heads do not divide the widths.
    """
    sizes = _sizes_of(tensors)
    for width, heads, tower in (
        (sizes.vision_width, num_vision_heads, "vision"),
        (sizes.text_width, num_text_heads, "text"),
    ):
        if width % heads:
            raise ValueError(f"num_{tower}_heads {heads} does not divide the checkpoint's {tower} width {width}")
    modules = _empty_modules(sizes, num_vision_heads, num_text_heads)
    renamed = {_renamed(key): value for key, value in tensors.items() if not key.startswith(_UNUSED)}
    try:
        modules.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is not ImageReward's: {error}") from error
    return Blip(sizes=sizes, modules=modules.float().eval().requires_grad_(False))


def _renamed(key: str) -> str:
    if key.startswith("mlp.layers."):
        return key.replace("mlp.layers.", "head.", 1)
    for theirs, ours in _RENAMED:
        key = key.replace(theirs, ours, 1)
    return key


def _sizes_of(tensors: Mapping[str, torch.Tensor]) -> Sizes:
    """Return a checkpoint's sizes."""

    def depth(prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})

    try:
        patch = tensors["blip.visual_encoder.patch_embed.proj.weight"]
        num_patches = tensors["blip.visual_encoder.pos_embed"].shape[1] - 1
        words = tensors["blip.text_encoder.embeddings.word_embeddings.weight"]
        heads = [tensors[f"mlp.layers.{index}.weight"] for index in (0, 2, 4, 6, 7)]
        return Sizes(
            vision_width=patch.shape[0],
            vision_depth=depth("blip.visual_encoder.blocks."),
            vision_hidden=tensors["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            patch_size=patch.shape[-1],
            image_size=math.isqrt(num_patches) * patch.shape[-1],
            text_width=words.shape[1],
            text_depth=depth("blip.text_encoder.encoder.layer."),
            text_hidden=tensors["blip.text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            vocabulary=words.shape[0],
            max_positions=tensors["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0],
            head_widths=(heads[0].shape[1], *(head.shape[0] for head in heads)),
        )
    except KeyError as error:
        shown = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise ValueError(
            f"the checkpoint is not ImageReward's: it has no tensor {error}; it has {shown}, ..."
        ) from error


def _empty_modules(sizes: Sizes, num_vision_heads: int, num_text_heads: int) -> torch.nn.ModuleDict:
    from torch import nn
    from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vision = BlipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=sizes.vision_hidden,
        num_hidden_layers=sizes.vision_depth,
        num_attention_heads=num_vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_act="gelu",
        layer_norm_eps=_VISION_EPS,
        attention_dropout=0.0,
    )
    text = BlipTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.text_width,
        encoder_hidden_size=sizes.vision_width,
        intermediate_size=sizes.text_hidden,
        num_hidden_layers=sizes.text_depth,
        num_attention_heads=num_text_heads,
        max_position_embeddings=sizes.max_positions,
        hidden_act="gelu",
        layer_norm_eps=_TEXT_EPS,
        is_decoder=True,  # Builds the cross-attention; the calls say is_decoder=False.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=0,
        eos_token_id=0,
        sep_token_id=0,
    )
    head = nn.Sequential()
    places = (0, 2, 4, 6, 7)  # Between them stood dropout.
    for place, wide, narrow in zip(places, sizes.head_widths[:-1], sizes.head_widths[1:], strict=True):
        head.add_module(str(place), nn.Linear(wide, narrow))
    return nn.ModuleDict(
        {"vision": BlipVisionModel(vision), "text": BlipTextModel(text, add_pooling_layer=False), "head": head}
    )


def pixels_of(picture: Image.Image, size: int) -> np.ndarray:
    """Return [3, size, size] float32: short side resized (bicubic), centre cut out, CLIP's mean and deviation.

    Args:
        picture: in mode RGB. The released code resizes first and converts to RGB then, which differs where a
            palette or transparency is resized.
        size: in pixels.
    """
    width, height = picture.size
    limit = _MAX_ASPECT * min(width, height)
    if max(width, height) > limit:
        picture = _center(picture, min(width, limit), min(height, limit))
        width, height = picture.size
    short = min(width, height)
    picture = picture.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
    values = np.asarray(_center(picture, size, size), dtype=np.float32) / np.float32(255.0)
    return np.ascontiguousarray(((values - _PIXEL_MEAN) / _PIXEL_STD).transpose(2, 0, 1))


def _center(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def tokenizer_of(vocabulary: str) -> Any:
    """Return BERT's uncased tokenizer with BLIP's two own tokens, [DEC] and [ENC], which only a prompt can contain.

    Args:
        vocabulary: the text of ``vocab.txt``, one token a line.
    """
    from transformers import BertTokenizer

    tokens = {token: index for index, token in enumerate(vocabulary.splitlines())}
    tokenizer = BertTokenizer(vocab=tokens)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    return tokenizer
