"""The base checkpoint and its adapters, as a recipe sets them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unigrpo.settings.base import Settings
from unigrpo.types import ImageFit


class PolicySettings(Settings):
    """The base checkpoint."""

    path: str = Field(description="Folder or hub id of the checkpoint; `asset:NAME` is one that ships with the package.")
    use: str | None = Field(None, description='The family: a file of unigrpo/models/policies, or "path/file.py:Class"; null is the one that config.json names.')
    image_tokenizer: str | None = Field(None, description="Folder or hub id of the MAGVIT-v2 tokenizer; needed for pictures.")
    image_size: int = Field(512, ge=16, le=16_384, multiple_of=16, description="Side in pixels of the squares that pictures become, those of prompts and those to learn from.")
    image_fit: ImageFit | None = Field(None, description="How a picture becomes such a square, where a task's data.image_fit is null: squash (both sides alike), pad (white bars) or crop (the middle); null is as the family's release does. For families that read pictures by codes.")
    adapter: str | None = Field(None, description="A LoRA adapter of a supervised stage, merged into the base before training.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = Field("cpu", description="cpu, cuda or cuda:N.")
    gradient_checkpointing: bool = Field(False, description="Recompute each block in backward: less memory, more time.")
    compiled: bool = Field(False, description="torch.compile each block: faster on a GPU after the first passes; a first ratio is then 1 up to rounding only.")


class LoraSettings(Settings):
    """Low-rank adapters on the policy's linear layers (dropout is 0, so that old, policy and reference agree)."""

    enabled: bool = Field(True, description="false trains all weights, against a frozen copy as reference.")
    r: int = Field(16, ge=1, le=16_384)
    alpha: float = Field(32.0, gt=0, le=1e6)
    targets: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="Module names; null is every linear layer of the blocks.")
