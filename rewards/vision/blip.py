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
"""Mean and deviation of the head's output over the data it was trained on."""
MAX_TOKENS = 35
NUM_VISION_HEADS, NUM_TEXT_HEADS = 16, 12
_VISION_EPS, _TEXT_EPS = 1e-6, 1e-12
_PIXEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
_PIXEL_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)
_MAX_ASPECT = 16
"""Longest picture, by its short side, that is resized whole: what lies further out is cut before, as it would be after.
"""
_HEAD_LAYERS = (0, 2, 4, 6, 7)
"""Places of the head's linear layers; between them stood dropout."""

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
class Blip:
    """The network of a checkpoint, in float32."""

    modules: torch.nn.ModuleDict
    """vision, text and head."""
    image_size: int
    """Pixels of a side."""
    vocabulary: int
    """Rows of the text encoder's embedding."""

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
    try:
        vision, text, head = _configs(tensors, num_vision_heads, num_text_heads)
    except KeyError as error:
        shown = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise ValueError(
            f"the checkpoint is not ImageReward's: it has no tensor {error}; it has {shown}, ..."
        ) from error
    for tower, config in {"vision": vision, "text": text}.items():
        width, heads = config.hidden_size, config.num_attention_heads
        if width % heads:
            raise ValueError(f"num_{tower}_heads {heads} does not divide the checkpoint's {tower} width {width}")
    modules = _empty_modules(vision, text, head)
    renamed = {_renamed(key): value for key, value in tensors.items() if not key.startswith(_UNUSED)}
    try:
        modules.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is not ImageReward's: {error}") from error
    modules = modules.float().eval().requires_grad_(False)
    return Blip(modules=modules, image_size=vision.image_size, vocabulary=text.vocab_size)


def _renamed(key: str) -> str:
    if key.startswith("mlp.layers."):
        return key.replace("mlp.layers.", "head.", 1)
    for theirs, ours in _RENAMED:
        key = key.replace(theirs, ours, 1)
    return key


def _configs(tensors: Mapping[str, torch.Tensor], num_vision_heads: int, num_text_heads: int) -> tuple[Any, Any, Any]:
    """Return the encoders' configurations and the head's shapes by place; heads leave no trace in the tensors."""
    from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape)

    def depth(prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})

    width, *_, patch_size = shape("blip.visual_encoder.patch_embed.proj.weight")
    num_patches = shape("blip.visual_encoder.pos_embed")[1] - 1
    vocabulary, text_width = shape("blip.text_encoder.embeddings.word_embeddings.weight")
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape("blip.visual_encoder.blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=depth("blip.visual_encoder.blocks."),
        num_attention_heads=num_vision_heads,
        image_size=math.isqrt(num_patches) * patch_size,
        patch_size=patch_size,
        hidden_act="gelu",
        layer_norm_eps=_VISION_EPS,
        attention_dropout=0.0,
    )
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=shape("blip.text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
        num_hidden_layers=depth("blip.text_encoder.encoder.layer."),
        num_attention_heads=num_text_heads,
        max_position_embeddings=shape("blip.text_encoder.embeddings.position_embeddings.weight")[0],
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
    return vision, text, {place: shape(f"mlp.layers.{place}.weight") for place in _HEAD_LAYERS}


def _empty_modules(vision: Any, text: Any, head: Mapping[int, tuple[int, int]]) -> torch.nn.ModuleDict:
    from torch import nn
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    layers = nn.Sequential()
    for place, (narrow, wide) in head.items():
        layers.add_module(str(place), nn.Linear(wide, narrow))
    return nn.ModuleDict(
        {"vision": BlipVisionModel(vision), "text": BlipTextModel(text, add_pooling_layer=False), "head": layers}
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
    """Return BERT's uncased tokenizer of a ``vocab.txt``, with BLIP's two own tokens [DEC] and [ENC] of prompts."""
    from transformers import BertTokenizer

    tokens = {token: index for index, token in enumerate(vocabulary.splitlines())}
    tokenizer = BertTokenizer(vocab=tokens)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    return tokenizer
