"""A whole supervised stage. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from unigrpo.settings.base import Settings
from unigrpo.settings.learning import Beta
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.settings.runs import CheckpointSettings, TrackerChoice, TrackingSettings
from unigrpo.settings.tasks import KindSettings, with_kinds


class SftTaskSettings(KindSettings):
    """One task of the supervised mixture."""

    batch_size: int = Field(ge=1, le=65_536)
    completion_length: int = Field(ge=1, le=1_048_576)
    weight: float = Field(1.0, gt=0, le=1e6)
    masks: Literal["random", "complementary"] = Field("random", description="complementary: each row twice, with exactly the other tokens of its completion masked (LaViDa).")
    noise: float = Field(0.0, ge=0, le=1, description="Fraction of demonstrations that the source is to get wrong, so that a later stage has something to sharpen.")


class SftRecipe(Settings):
    """A supervised stage: masked-diffusion loss on demonstrations (`answer` column: the whole completion)."""

    name: str = Field(min_length=1, max_length=100)
    description: str = ""
    seed: int = Field(0, ge=0, lt=1 << 63)
    num_steps: int = Field(ge=1, le=10_000_000)
    num_threads: int | None = Field(None, ge=1, le=4096)
    policy: PolicySettings
    lora: LoraSettings = LoraSettings(enabled=False)
    tasks: Annotated[dict[str, SftTaskSettings], BeforeValidator(with_kinds)]
    lr: float = Field(gt=0, le=10)
    warmup_steps: int = Field(0, ge=0, le=10_000_000)
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0, le=1e3)
    max_grad_norm: float = Field(1.0, gt=0, le=1e12)
    clean_steps: int = Field(0, ge=0, le=10_000_000, description="First steps, whose demonstrations are all right whatever `noise` says: a task is learnt in a third of the steps that way.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Pictures trained without their caption, for guidance.")
    min_mask_ratio: float = Field(1e-3, gt=0, lt=1, description="Lowest mask ratio of text, the reference's eps.")
    log_every: int = Field(50, ge=1, le=10_000_000)
    checkpoint: CheckpointSettings = CheckpointSettings(every=500)
    tracking: TrackingSettings = TrackingSettings(use=[TrackerChoice(use=name) for name in ("jsonl", "tensorboard")])
