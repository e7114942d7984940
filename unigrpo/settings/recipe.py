"""A whole training run; a wrong name or value fails when the recipe is loaded. Torch-free."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from unigrpo.settings.base import Settings
from unigrpo.settings.learning import (
    AdvantageChoice,
    EstimatorChoice,
    KlChoice,
    LearnerSettings,
    ObjectiveChoice,
    RatioChoice,
)
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.runs import CheckpointSettings, EvaluateSettings, RolloutSettings, TrackingSettings
from unigrpo.settings.tasks import TaskSettings, tasks_named, with_kinds


class Recipe(Settings):
    """A whole training run."""

    name: str = Field(min_length=1, max_length=100)
    description: str = ""
    seed: int = Field(0, ge=0, lt=1 << 63)
    num_steps: int = Field(ge=1, le=10_000_000)
    group_size: int = Field(8, ge=2, le=65_536)
    num_threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of the learner; null is torch's default.")
    policy: PolicySettings
    lora: LoraSettings = LoraSettings()
    tasks: Annotated[dict[str, TaskSettings], BeforeValidator(with_kinds)]
    rewards: dict[str, RewardSettings]
    advantages: AdvantageChoice = AdvantageChoice()
    estimator: EstimatorChoice = EstimatorChoice()
    ratio: RatioChoice = RatioChoice()
    objective: ObjectiveChoice = ObjectiveChoice()
    kl: KlChoice = KlChoice()
    learner: LearnerSettings
    rollouts: RolloutSettings = RolloutSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("rewards")
    @classmethod
    def _rewards_name_tasks(cls, rewards: dict[str, RewardSettings], info: ValidationInfo) -> dict[str, RewardSettings]:
        """Put names in place of kinds: from here on a reward's tasks are names."""
        tasks = info.data.get("tasks", {})
        named = {
            name: reward.model_copy(
                update={"tasks": list(dict.fromkeys(task for key in reward.tasks for task in tasks_named(key, tasks)))}
            )
            for name, reward in rewards.items()
            if reward.tasks is not None
        }
        return rewards | named

    @field_validator("evaluate")
    @classmethod
    def _accuracy_names_tasks(cls, evaluate: EvaluateSettings, info: ValidationInfo) -> EvaluateSettings:
        """Put names in place of kinds; a task's own reward goes before that of its kind."""
        given, tasks = evaluate.accuracy, info.data.get("tasks", {})
        spread = {name: given.get(name, given[key]) for key in given for name in tasks_named(key, tasks)}
        return evaluate.model_copy(update={"accuracy": spread})
