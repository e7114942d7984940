"""The rewards of a run: what scores a completion, where it runs and what its failure becomes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from unigrpo.settings.base import Settings


class EnvSettings(Settings):
    """The interpreter of a reward whose packages conflict with ours: one that is there, or one that is built once and kept."""

    python: str | None = Field(None, description="An interpreter that is there; a relative path starts at the recipe's folder.")
    requirements: list[str] | None = Field(None, description="Lines of a pip requirements file; installed once under UNIGRPO_HOME (~/.cache/unigrpo).")
    python_version: str | None = Field(None, pattern=r"^3\.\d+$", description="With requirements: which python3.x of the PATH; null is the one that runs.")

    @model_validator(mode="after")
    def _is_one_of_two(self) -> EnvSettings:
        if (self.python is None) == (self.requirements is None):
            raise ValueError("an env is `python: PATH` or `requirements: [...]`, one of the two")
        if self.python is not None and self.python_version is not None:
            raise ValueError("python_version chooses what requirements are installed for; with `python: PATH` leave it out")
        return self


class RewardSettings(Settings):
    """One reward."""

    use: str = Field(description='"module:Class", "module:function" or "path/file.py:name".')
    arguments: dict[str, Any] = Field(default_factory=dict, description="Constructor arguments of a class, or extra keywords of a function.")
    weight: float = Field(1.0, ge=-1e9, le=1e9, description="0 is logged only: it can neither mask a row nor drop a group nor stop the run, unless it is a gate of one that counts.")
    clip: tuple[float, float] | None = Field(None, description="[lowest, highest]: values beyond count as these; the log keeps them as they are.")
    gate: list[str] = Field(default_factory=list, description="Rewards that a completion must all pass for this one to count; where it does not, this one counts as its lowest.")
    pass_at: float | None = Field(None, description="Value from which a completion passes this reward: it opens the gates that name it, and counts as right; null is the highest that counts.")
    watch: bool = Field(True, description="At weight 0: its fall while an optimised reward rises sets alarm/held_out_falls; false for a plain measurement.")
    tasks: list[str] | None = Field(None, description="Names of tasks, or kinds, which stand for all tasks of the kind; null is every task.")
    timeout_s: float = Field(30.0, gt=0, le=604_800, description="Seconds of a call, which is of at most `batch_size` completions; one that takes longer is killed.")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Completions of a call; a reward of whole groups gets a larger group whole.")
    memory_limit_gb: float | None = Field(None, ge=0, le=1e6, description="Address space of its process in GB; null is what the reward says of itself (`memory_limit_gb`), else 16 for a function and no limit for a class, which may hold a model; 0 is no limit.")
    num_workers: int = Field(1, ge=1, le=1024, description="Processes that share the completions of a step; each makes the reward, so each needs its memory.")
    worker: str | None = Field(None, description="Rewards with the same name here live in the same processes, so that they can share a model; null is processes of its own.")
    placement: Literal["local", "ray"] = Field("local", description="Where its processes run: on this machine, or on nodes of the Ray cluster.")
    num_gpus: float = Field(0.0, ge=0, le=1024, description="With placement: ray, GPUs of each process.")
    num_cpus: float = Field(1.0, ge=0, le=4096, description="With placement: ray, CPUs of each process.")
    cache: Literal["off", "memory", "disk"] | None = Field(None, description="Where values are kept, so that an equal completion is not scored again; null is in memory if the reward says `is_deterministic = True`, else off. Where values are kept, equal completions of one step are scored once, too.")
    cache_file: str | None = Field(None, description="With cache: disk, a SQLite file that runs may share. A value holds until the reward's arguments, its file, a module that this imports from the same folder, or the attributes `version` and `fingerprint` change: what changes elsewhere needs a new `version`.")
    max_failed_fraction: float = Field(0.2, ge=0, le=1, description="Failed completions of a step beyond which the run stops (from three); at weight 0, beyond which the rest of the step goes without this reward, with one warning and reward/NAME/outage in the metrics.")
    on_error: Literal["mask", "value", "drop_group", "raise"] = Field("mask", description="What an infrastructure failure becomes; at weight 0 neither drop_group nor raise.")
    error_value: float | None = Field(None, description="The value for `on_error: value`.")
    env: EnvSettings | None = Field(None, description="An interpreter of its own, for packages that conflict with ours; null is the one that runs.")
