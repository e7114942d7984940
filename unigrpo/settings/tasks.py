"""The tasks of a run: their kind, their data and how their completions are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field

from unigrpo.settings.base import Choice, Settings
from unigrpo.types import ImageFit, TaskKind


class ScheduleChoice(Choice):
    """How many masked positions a denoising step commits."""

    folder = "unigrpo.rollouts.schedules"
    use: str = "linear"


class OrderChoice(Choice):
    """Which masked positions a denoising step commits."""

    folder = "unigrpo.rollouts.orders"
    use: str = "low_confidence"


class SamplingSettings(Settings):
    """How a completion of one task is generated."""

    completion_length: int = Field(ge=1, le=1_048_576, description="Open tokens of text, or image codes of a picture.")
    num_denoising_steps: int = Field(ge=1, le=1_048_576, description="Total over all blocks.")
    block_length: int | None = Field(None, ge=1, le=1_048_576, description="null is one block.")
    temperature: float = Field(1.0, ge=0, le=1e6)
    top_p: float = Field(1.0, gt=0, le=1, description="Tokens are drawn from the likeliest ones that together have this probability, at the temperature; 1 is all. What is trained is scored without it.")
    guidance_scale: float = Field(0.0, ge=0, le=1e6)
    remasking: OrderChoice = Field(OrderChoice(), description="Which positions a step commits; origin commits each by itself, with the schedule's probability.")
    remasking_temperature: float = Field(0.0, ge=0, le=1e6)
    schedule: ScheduleChoice = Field(ScheduleChoice(), description="How many a step: equal shares, MaskGIT's cosine or pow2, Dream's timesteps, LaViDa's shift or sine.")
    editing_threshold: float | None = Field(None, ge=0, le=2, description="Probability above which a token that is there is replaced while its block is worked on (LLaDA2.1, block-causal policies); null, like what no probability exceeds, is never.")
    restrict_vocabulary: bool = Field(True, description="Text tokens only for text, codes only for pictures; false is the reference text samplers' whole vocabulary.")
    stop_at_eos: bool = True


class DataSettings(Settings):
    """Where the prompts of one task come from: a generator (`use`) or a JSONL file."""

    use: str | None = Field(None, description='"module:Class" or "path/file.py:Class": called with (split, seed, **arguments) for a list of prompts or an object with [index], the prompt of a number from 0. Where its num_prompts or length ends, training begins anew; one that says neither has no end.')
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of `use`.")
    jsonl: str | None = Field(None, description="A JSONL file of training prompts.")
    eval_jsonl: str | None = Field(None, description="A JSONL file of held-out prompts.")
    columns: dict[str, str] = Field(default_factory=dict, description="Our name (prompt, answer, image, id, completion) -> the file's column.")
    template: str | None = Field(None, description="Text with {prompt}, put in place of each prompt.")
    image_fit: ImageFit | None = Field(None, description="How this task's pictures become squares; null is policy.image_fit.")
    max_pixels: int = Field(64_000_000, ge=1, le=178_956_970, description="Of a picture; one that has more is refused by its header, before it is unpacked (at 64 million to 192 MB). Phones take 12 to 50 million; Pillow opens none above the upper bound.")
    max_prompt_tokens: int | None = Field(None, ge=1, description="Tokens of a prompt at most, template and pictures counted; null, and above it, is what the checkpoint's context leaves beside the completion.")
    too_long: Literal["refuse", "skip", "cut"] = Field("refuse", description="What becomes of a longer prompt: an error with file and line before the first step, left out and counted, or the beginning of the user's text cut off.")


class KindSettings(Settings):
    """What every task has."""

    kind: TaskKind = Field(description="one of reason (text to text), understand (pictures and text to text) or imagine (text to a picture), as in `gsm8k: {kind: reason, ...}`; left out where the name is one of these.")
    data: DataSettings


def with_kinds(tasks: Any) -> Any:
    """Return `tasks` as a recipe writes them, with the kind of each task whose name is one and that has none."""
    if not isinstance(tasks, Mapping):
        return tasks
    return {
        name: {"kind": name, **task} if name in get_args(TaskKind) and isinstance(task, Mapping) else task
        for name, task in tasks.items()
    }


def tasks_named(key: str, tasks: Mapping[str, KindSettings]) -> list[str]:
    """Return the names of all tasks of a kind; what is no kind of a task stays as it is."""
    return [name for name, task in tasks.items() if task.kind == key] or [key]


class TaskSettings(KindSettings):
    """One task of the mixture."""

    prompts_per_step: int = Field(ge=1, le=1_000_000)
    sampling: SamplingSettings
