"""Rollouts, checkpoints, evaluation and tracking of a run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from unigrpo.settings.base import Choice, Settings


class RolloutSettings(Settings):
    """Where completions are generated."""

    num_actors: int = Field(0, ge=0, le=4096, description="Ray actors; 0 generates in this process.")
    rows_per_unit: int = Field(64, ge=1, le=1_000_000, description="Rows that are sampled together; whole groups, fixed before dispatch.")
    num_threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of each actor; null is torch's default.")
    num_gpus: float = Field(0.0, ge=0, le=1024, description="GPUs of each actor.")
    deadline_s: float = Field(600.0, gt=0, le=2_592_000, description="Seconds without a finished unit, or an actor that has loaded, after which the run stops and says what it waited for.")
    max_restarts: int = Field(3, ge=0, le=1_000_000, description="Restarts of a lost actor in the run.")


class CheckpointSettings(Settings):
    """When the run can be resumed from."""

    every: int = Field(20, ge=0, le=10_000_000, description="Steps between checkpoints; 0 is only the last.")
    keep: int = Field(2, ge=1, le=10_000_000)
    max_failed_saves: int = Field(3, ge=0, le=10_000_000, description="Checkpoints in a row that a full or failing disk may refuse, each tried again after the next step, before the run stops.")


class EvaluateSettings(Settings):
    """Held-out prompts, at temperature 1 and greedy."""

    enabled: bool = Field(True, description="false skips before and after, too.")
    every: int = Field(0, ge=0, le=10_000_000, description="0: none during the run.")
    num_prompts: int = Field(256, ge=1, le=10_000_000, description="A task.")
    accuracy: dict[str, str] = Field(default_factory=dict, description="The reward of each task, or of all tasks of a kind that have none of their own, that the greedy completion must pass to count as right.")


class TrackerChoice(Choice):
    """Who hears of the run."""

    folder = "unigrpo.runs.trackers"


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class TrackingSettings(Settings):
    """What becomes of a run's metrics and samples."""

    use: Annotated[list[TrackerChoice], BeforeValidator(_listed)] = Field([TrackerChoice(use=name) for name in ("jsonl", "tensorboard", "report")], description="jsonl is the first: resuming and the report read it, and what others show of a step is on disk.")
    rollouts_every: int = Field(10, ge=0, le=10_000_000, description="Steps between rollouts that trackers get (text and pictures); 0 is none. A supervised stage has none.")

    @model_validator(mode="after")
    def _begins_on_disk(self) -> TrackingSettings:
        names = [chosen.use for chosen in self.use]
        if names[:1] != ["jsonl"] or names.count("jsonl") > 1:
            raise ValueError("jsonl once, as the first of use: resuming and the report read metrics.jsonl")
        return self
