"""Every setting of a recipe, typed; a wrong name or value fails when the recipe is loaded. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from unigrpo.types import TaskKind


class Settings(BaseModel):
    """A section of a recipe: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Choice(BaseModel):
    """A part chosen by name: `use`, and the parameters of the class beside it. A bare name is short for `{use: NAME}`."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    folder: ClassVar[str]
    """The package whose files are the known values."""
    use: str

    @model_validator(mode="before")
    @classmethod
    def _from_its_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping | Choice):
            return value
        if not isinstance(value, str):
            raise ValueError("a name, or `use` with the parameters of the class beside it")
        return {"use": value}

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the parameters of the class that `use` names."""
        return dict(self.model_extra or {})


def choices_of(section: Any, key: str = "") -> Iterator[tuple[str, Choice]]:
    """Yield every choice in a part of a recipe, with its key."""
    if isinstance(section, Choice):
        yield key, section
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(section, BaseModel):
        parts = ((name, getattr(section, name)) for name in type(section).model_fields)
    elif isinstance(section, Mapping):
        parts = section.items()
    elif isinstance(section, list | tuple):
        parts = enumerate(section)
    for name, part in parts:
        yield from choices_of(part, f"{key}.{name}" if key else str(name))


class PolicySettings(Settings):
    """The base checkpoint."""

    path: str = Field(description="Folder or hub id of the checkpoint; `asset:NAME` is one that ships with the package.")
    use: str | None = Field(None, description='The family: a file of unigrpo/models/policies, or "path/file.py:Class"; null is the one that config.json names.')
    image_tokenizer: str | None = Field(None, description="Folder or hub id of the MAGVIT-v2 tokenizer; needed for pictures.")
    image_size: int = Field(512, ge=16, multiple_of=16, description="Side in pixels to which the pictures of prompts are resized and cropped.")
    adapter: str | None = Field(None, description="A LoRA adapter of a supervised stage, merged into the base before training.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = Field("cpu", description="cpu, cuda or cuda:N.")
    gradient_checkpointing: bool = Field(False, description="Recompute each block in backward: less memory, more time.")
    compiled: bool = Field(False, description="torch.compile each block: faster on a GPU after the first passes; a first ratio is then 1 up to rounding only.")


class LoraSettings(Settings):
    """Low-rank adapters on the policy's linear layers (dropout is 0, so that old, policy and reference agree)."""

    enabled: bool = Field(True, description="false trains all weights, against a frozen copy as reference.")
    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: list[str] | None = Field(None, description="Module names; null is every linear layer of the blocks.")


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

    completion_length: int = Field(ge=1, description="Open tokens of text, or image codes of a picture.")
    num_denoising_steps: int = Field(ge=1, description="Total over all blocks.")
    block_length: int | None = Field(None, ge=1, description="null is one block.")
    temperature: float = Field(1.0, ge=0)
    guidance_scale: float = Field(0.0, ge=0)
    remasking: OrderChoice = Field(OrderChoice(), description="Which positions a step commits; origin commits each by itself, with the schedule's probability.")
    remasking_temperature: float = Field(0.0, ge=0)
    schedule: ScheduleChoice = Field(ScheduleChoice(), description="How many a step: equal shares, MaskGIT's cosine or pow2, Dream's timesteps, LaViDa's shift or sine.")
    editing_threshold: float | None = Field(None, ge=0, description="Probability above which a token that is there is replaced while its block is worked on (LLaDA2.1, block-causal policies); null is never.")
    restrict_vocabulary: bool = Field(True, description="Text tokens only for text, codes only for pictures; false is the reference text samplers' whole vocabulary.")
    stop_at_eos: bool = True


class DataSettings(Settings):
    """Where the prompts of one task come from: a generator (`use`) or a JSONL file."""

    use: str | None = Field(None, description='"module:Class" or "path/file.py:Class": called with (split, seed, **with), iterated for prompts.')
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of `use`.")
    jsonl: str | None = Field(None, description="A JSONL file of training prompts.")
    eval_jsonl: str | None = Field(None, description="A JSONL file of held-out prompts.")
    columns: dict[str, str] = Field(default_factory=dict, description="Our name (prompt, answer, image, id) -> the file's column.")
    template: str | None = Field(None, description="Text with {prompt}, put in place of each prompt.")


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

    prompts_per_step: int = Field(ge=1)
    sampling: SamplingSettings


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
    weight: float = Field(1.0, description="0 is logged only: it can neither mask a row nor drop a group nor stop the run, unless it is a gate of one that counts.")
    clip: tuple[float, float] | None = Field(None, description="[lowest, highest]: values beyond count as these; the log keeps them as they are.")
    gate: list[str] = Field(default_factory=list, description="Rewards that a completion must all pass for this one to count; where it does not, this one counts as its lowest.")
    pass_at: float | None = Field(None, description="Value from which a completion passes this reward: it opens the gates that name it, and counts as right; null is the highest that counts.")
    watch: bool = Field(True, description="At weight 0: its fall while an optimised reward rises sets alarm/held_out_falls; false for a plain measurement.")
    tasks: list[str] | None = Field(None, description="Names of tasks, or kinds, which stand for all tasks of the kind; null is every task.")
    timeout_s: float = Field(30.0, gt=0, description="Seconds of a call, which is of at most `batch_size` completions; one that takes longer is killed.")
    batch_size: int = Field(64, ge=1, description="Completions of a call; a reward of whole groups gets a larger group whole.")
    memory_limit_gb: float | None = Field(None, ge=0, description="Address space of its process in GB; null is what the reward says of itself (`memory_limit_gb`), else 16 for a function and no limit for a class, which may hold a model; 0 is no limit.")
    num_workers: int = Field(1, ge=1, description="Processes that share the completions of a step; each makes the reward, so each needs its memory.")
    worker: str | None = Field(None, description="Rewards with the same name here live in the same processes, so that they can share a model; null is processes of its own.")
    placement: Literal["local", "ray"] = Field("local", description="Where its processes run: on this machine, or on nodes of the Ray cluster.")
    num_gpus: float = Field(0.0, ge=0, description="With placement: ray, GPUs of each process.")
    num_cpus: float = Field(1.0, ge=0, description="With placement: ray, CPUs of each process.")
    cache: Literal["off", "memory", "disk"] | None = Field(None, description="Where values are kept, so that an equal completion is not scored again; null is in memory if the reward says `is_deterministic = True`, else off. Where values are kept, equal completions of one step are scored once, too.")
    cache_file: str | None = Field(None, description="With cache: disk, a SQLite file that runs may share. A value holds until the reward's arguments, its file, a module that this imports from the same folder, or the attributes `version` and `fingerprint` change: what changes elsewhere needs a new `version`.")
    max_failed_fraction: float = Field(0.2, ge=0, le=1, description="Failed completions of a step beyond which the run stops (from three); at weight 0, beyond which the rest of the step goes without this reward, with one warning and reward/NAME/outage in the metrics.")
    on_error: Literal["mask", "value", "drop_group", "raise"] = Field("mask", description="What an infrastructure failure becomes; at weight 0 neither drop_group nor raise.")
    error_value: float | None = Field(None, description="The value for `on_error: value`.")
    env: EnvSettings | None = Field(None, description="An interpreter of its own, for packages that conflict with ours; null is the one that runs.")


class AdvantageChoice(Choice):
    """How the rewards of a group become advantages; the paper's eq. 15 is the z-score."""

    folder = "unigrpo.methods.advantages"
    use: str = "zscore"
    aggregate: Literal["sum_then_normalize", "normalize_then_sum"] = Field("sum_then_normalize", description="Weighted sum first (the paper), or each reward normalised within its group first.")
    std_floor: float = Field(1e-4, gt=0, description="Groups whose standard deviation is below it get advantage 0.")
    whiten: bool = Field(False, description="Divide the advantages of a step by their standard deviation, as GDPO does after normalize_then_sum.")
    shuffle_within_groups: bool = Field(False, description="A control: advantages permuted inside each group, so that nothing can be learnt.")


class EstimatorChoice(Choice):
    """Which positions are noised and scored at each inner update."""

    folder = "unigrpo.methods.estimators"
    use: str = "unigrpo"


class RatioChoice(Choice):
    """How far the policy has moved from the one that generated, at each token."""

    folder = "unigrpo.methods.ratios"
    use: str = "token"


class ObjectiveChoice(Choice):
    """What a token's ratio and advantage are worth."""

    folder = "unigrpo.methods.objectives"
    use: str = "clipped"


class KlChoice(Choice):
    """The penalty on the distance from the reference, or from the policy that generated."""

    folder = "unigrpo.methods.kl"
    use: str = "k3"
    coef: float = Field(0.02, ge=0, description="The paper's beta; 0 skips the reference passes.")
    to: Literal["reference", "old"] = Field("reference", description="old: the policy before the step's first update; it needs no reference.")

    @property
    def needs_reference(self) -> bool:
        """Return whether the reference is asked for its log-probs."""
        return self.coef > 0 and self.to == "reference"


class LearnerSettings(Settings):
    """The optimiser (AdamW) and the inner updates."""

    lr: float = Field(gt=0)
    num_inner_updates: int = Field(2, ge=1, description="The paper's mu.")
    micro_batch_rows: int = Field(64, ge=1, description="Rows that go through the model together.")
    warmup_steps: int = Field(0, ge=0, description="Learner steps over which the rate rises.")
    lr_schedule: Literal["constant", "cosine"] = Field("cosine", description="cosine falls to 0 at num_steps, as in the paper.")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    logprob_chunk: int = Field(1024, ge=1, description="Scored positions that go through the head together.")
    max_skipped_updates: int = Field(10, ge=0, description="Updates with non-finite gradients before the run stops.")


class RolloutSettings(Settings):
    """Where completions are generated."""

    num_actors: int = Field(0, ge=0, description="Ray actors; 0 generates in this process.")
    rows_per_unit: int = Field(64, ge=1, description="Rows that are sampled together; whole groups, fixed before dispatch.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads of each actor; null is torch's default.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of each actor.")
    deadline_s: float = Field(600.0, gt=0, description="Seconds without a finished unit, or an actor that has loaded, after which the run stops and says what it waited for.")
    max_restarts: int = Field(3, ge=0, description="Restarts of a lost actor in the run.")


class CheckpointSettings(Settings):
    """When the run can be resumed from."""

    every: int = Field(20, ge=0, description="Steps between checkpoints; 0 is only the last.")
    keep: int = Field(2, ge=1)


class EvaluateSettings(Settings):
    """Held-out prompts, at temperature 1 and greedy."""

    enabled: bool = Field(True, description="false skips before and after, too.")
    every: int = Field(0, ge=0, description="0: none during the run.")
    num_prompts: int = Field(256, ge=1, description="A task.")
    accuracy: dict[str, str] = Field(default_factory=dict, description="The reward of each task, or of all tasks of a kind that have none of their own, that the greedy completion must pass to count as right.")


class TrackerChoice(Choice):
    """Who hears of the run."""

    folder = "unigrpo.runs.trackers"


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class TrackingSettings(Settings):
    """What becomes of a run's metrics and samples."""

    use: Annotated[list[TrackerChoice], BeforeValidator(_listed)] = Field([TrackerChoice(use=name) for name in ("jsonl", "tensorboard", "report")], description="jsonl is the first: resuming and the report read it, and what others show of a step is on disk.")
    rollouts_every: int = Field(10, ge=0, description="Steps between rollouts that trackers get (text and pictures); 0 is none. A supervised stage has none.")

    @model_validator(mode="after")
    def _begins_on_disk(self) -> TrackingSettings:
        names = [chosen.use for chosen in self.use]
        if names[:1] != ["jsonl"] or names.count("jsonl") > 1:
            raise ValueError("jsonl once, as the first of use: resuming and the report read metrics.jsonl")
        return self


class Recipe(Settings):
    """A whole training run."""

    name: str
    description: str = ""
    seed: int = 0
    num_steps: int = Field(ge=1)
    group_size: int = Field(8, ge=2)
    num_threads: int | None = Field(None, ge=1, description="CPU threads of the learner; null is torch's default.")
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


class SftTaskSettings(KindSettings):
    """One task of the supervised mixture."""

    batch_size: int = Field(ge=1)
    completion_length: int = Field(ge=1)
    weight: float = Field(1.0, gt=0)
    masks: Literal["random", "complementary"] = Field("random", description="complementary: each row twice, with exactly the other tokens of its completion masked (LaViDa).")
    noise: float = Field(0.0, ge=0, le=1, description="Fraction of demonstrations that the source is to get wrong, so that a later stage has something to sharpen.")


class SftRecipe(Settings):
    """A supervised stage: masked-diffusion loss on demonstrations (`answer` column: the whole completion)."""

    name: str
    description: str = ""
    seed: int = 0
    num_steps: int = Field(ge=1)
    num_threads: int | None = Field(None, ge=1)
    policy: PolicySettings
    lora: LoraSettings = LoraSettings(enabled=False)
    tasks: Annotated[dict[str, SftTaskSettings], BeforeValidator(with_kinds)]
    lr: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    clean_steps: int = Field(0, ge=0, description="First steps, whose demonstrations are all right whatever `noise` says: a task is learnt in a third of the steps that way.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Pictures trained without their caption, for guidance.")
    min_mask_ratio: float = Field(1e-3, gt=0, lt=1, description="Lowest mask ratio of text, the reference's eps.")
    log_every: int = Field(50, ge=1)
    checkpoint: CheckpointSettings = CheckpointSettings(every=500)
    tracking: TrackingSettings = TrackingSettings(use=[TrackerChoice(use=name) for name in ("jsonl", "tensorboard")])
