"""What a step of a recipe costs: counts that follow from the recipe, memory that follows from the files' headers."""

from __future__ import annotations

from typing import NamedTuple

from unigrpo.models.files.folders import resolve_folder
from unigrpo.plugin import facts
from unigrpo.recipe.checks import image_fit, is_hub_id
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.tasks import TaskSettings
from unigrpo.sizing.model_size import ModelSize, released_sizes

PROMPT_TOKENS = 128
"""Assumed text tokens of a prompt: the real number is known when the data is read."""
_PICTURE_PATCH = 16  # pixels a side of one MAGVIT-v2 code
SAMPLER_LOGITS = 1 << 25
"""Logits that the sampler holds at one time: ``rollouts.draw.ELEMENTS_PER_CHUNK``, which only torch can import."""
_BYTES_A_SAMPLER_LOGIT = 24  # three float32 (with, without and after guidance), probabilities, their float64 sums


class Row(NamedTuple):
    """One line of the arithmetic."""

    name: str
    value: str
    explanation: str = ""


def batch_arithmetic(recipe: Recipe) -> dict[str, list[Row]]:
    """Return what one learner step of a checked recipe does, by section, for people to read."""
    memory = memory_rows(recipe) or [_unknown_size(recipe.policy.path)]
    return {"tasks": _task_rows(recipe), "a step": _step_rows(recipe), "memory of the learner, estimated": memory}


def num_rollouts(recipe: Recipe) -> int:
    """Return N = P * G of a step, over all tasks."""
    return recipe.group_size * sum(task.prompts_per_step for task in recipe.tasks.values())


def num_draw_rows(recipe: Recipe) -> int:
    """Return R, the rows of one mask draw over a step's rollouts."""
    chosen = recipe.estimator
    return num_rollouts(recipe) * int(facts(chosen.use, chosen.folder).get("rows_per_rollout", 1))


def num_rollout_rows(recipe: Recipe) -> int:
    """Return rows that go through the model to generate a step's rollouts: guidance counts twice."""
    return sum(_rollout_rows(recipe, task) for task in recipe.tasks.values())


def _rollout_rows(recipe: Recipe, task: TaskSettings) -> int:
    twice = 2 if task.sampling.guidance_scale > 0 else 1
    return task.prompts_per_step * recipe.group_size * task.sampling.num_denoising_steps * twice


def _task_rows(recipe: Recipe) -> list[Row]:
    rows = []
    for name, task in recipe.tasks.items():
        count, sampling = task.prompts_per_step * recipe.group_size, task.sampling
        title = name if name == task.kind else f"{name} ({task.kind})"
        twice = " x 2 for guidance" if sampling.guidance_scale > 0 else ""
        explanation = (
            f"{task.prompts_per_step} prompts x group of {recipe.group_size}; {sampling.completion_length} open tokens "
            f"in {sampling.num_denoising_steps} denoising steps{twice}: {_rollout_rows(recipe, task):,} rows through "
            "the model"
        )
        if task.kind == "understand" and (fit := image_fit(recipe.policy, task)):
            explanation += f"; pictures become squares of {recipe.policy.image_size} pixels by {fit}"
        rows.append(Row(title, f"{count:,} rollouts", explanation))
    return rows


def _step_rows(recipe: Recipe) -> list[Row]:
    rollouts, updates = num_rollouts(recipe), recipe.learner.num_inner_updates
    tokens = sum(
        task.prompts_per_step * recipe.group_size * task.sampling.completion_length for task in recipe.tasks.values()
    )
    rows = num_draw_rows(recipe)
    micro = min(recipe.learner.micro_batch_rows, rows)
    num_micro = -(-rows // micro)
    groups_per_unit = recipe.rollouts.rows_per_unit // recipe.group_size
    units = sum(-(-task.prompts_per_step // groups_per_unit) for task in recipe.tasks.values())
    no_grad = updates - 1 + (updates if recipe.kl.needs_reference else 0)
    reference = "the reference on each draw" if recipe.kl.needs_reference else "no reference"
    workers = f"{recipe.rollouts.num_actors} actors" if recipe.rollouts.num_actors else "this process"
    sampled = f"up to {groups_per_unit} whole groups of one task each, sampled in {workers}"
    generated, passes = num_rollout_rows(recipe), "forward passes of one row, denoising steps and guidance counted"
    in_all = f"{updates * recipe.num_steps:,} in the run of {recipe.num_steps:,} steps"
    batches = f"{num_micro} micro-batches of up to {micro} rows an update"
    return [
        Row("rollouts", f"{rollouts:,}", f"{tokens:,} open tokens"),
        Row("work units", f"{units:,}", sampled),
        Row("rows to generate", f"{generated:,}", passes),
        Row("mask draws", f"{updates}", "one an inner update (mu), over all rollouts"),
        Row("rows without gradient", f"{no_grad * rows:,}", f"old on all draws but the first, {reference}"),
        Row("rows with gradient", f"{updates * rows:,}", batches),
        Row("optimizer updates", f"{updates}", in_all),
    ]


def memory_rows(recipe: Recipe, size: ModelSize | None = None, length: int | None = None) -> list[Row]:
    """Return what the learner and each actor hold, estimated; nothing where the model's sizes are not known.

    ``size`` is read from the files' headers, or known by a released name, and ``length`` (tokens of a row) is that of
    the recipe's longest, where not given.
    """
    size = size or _model_size(recipe)
    if size is None:
        return []
    num_bytes = 2 if recipe.policy.dtype == "bfloat16" else 4
    weights = size.num_parameters * num_bytes
    if recipe.lora.enabled:
        trained = size.num_adapter_parameters(recipe.lora.r, recipe.lora.targets)
        trained_bytes, noun = trained * 4, f"LoRA of rank {recipe.lora.r}: {trained / 1e6:.2f} M weights in float32"
    else:
        trained = size.num_parameters
        trained_bytes, noun = weights, "the frozen reference: a copy of the weights"
    optimizer = trained * 8 + trained * (4 if recipe.lora.enabled else num_bytes)
    assumed = f"prompts taken as {PROMPT_TOKENS} text tokens and their pictures' codes" if length is None else ""
    length = length or _longest_row(recipe)
    micro = min(recipe.learner.micro_batch_rows, num_draw_rows(recipe))
    activations = _activation_bytes(recipe, size, micro, length, num_bytes)
    chunk = recipe.learner.logprob_chunk * size.vocabulary * 4 * 2
    sampler, unit_rows = _sampler_bytes(recipe, size, length, num_bytes)
    by_name = f", known by the name {recipe.policy.path}" if is_hub_id(recipe.policy.path) else ""
    recomputed = ", each block recomputed in backward" if recipe.policy.gradient_checkpointing else ""
    rows = [
        ("weights", weights, f"{size.num_parameters / 1e6:,.1f} M in {recipe.policy.dtype}{by_name}"),
        ("adapter" if recipe.lora.enabled else "reference", trained_bytes, noun),
        ("gradients, AdamW", optimizer, "one gradient and two moments a trained weight"),
        ("activations", activations, f"{micro} rows of about {length:,} tokens{recomputed}"),
        ("logits chunk", chunk, f"{recipe.learner.logprob_chunk:,} positions x {size.vocabulary:,} ids, twice"),
    ]
    update = activations + chunk
    total = weights + trained_bytes + optimizer
    sampled = f"up to {unit_rows} rows of about {length:,} tokens and {SAMPLER_LOGITS / 1e6:.0f} M logits"
    if recipe.rollouts.num_actors:
        copy = weights + (trained_bytes if recipe.lora.enabled else 0) + sampler
        why = (
            f"x {recipe.rollouts.num_actors} actors: a copy of the policy (on one CPU machine they share the file's "
            f"pages) and the sampler's {_gigabytes(sampler)}: {sampled}"
        )
        actors = [Row("each actor, besides", _gigabytes(copy), why)]
        total += update
    else:
        rows.append(("sampler", sampler, f"{sampled}, between updates: not on top of activations"))
        total, actors = total + max(update, sampler), []
    return [
        *(Row(name, _gigabytes(amount), why) for name, amount, why in rows),
        Row("total", _gigabytes(total), assumed),
        *actors,
    ]


def _sampler_bytes(recipe: Recipe, size: ModelSize, length: int, num_bytes: int) -> tuple[int, int]:
    """Return what sampling a unit holds at one time, and the unit's rows: one block without gradient, and logits."""
    unit_rows = max(
        min(recipe.rollouts.rows_per_unit, task.prompts_per_step * recipe.group_size)
        * (2 if task.sampling.guidance_scale > 0 else 1)
        for task in recipe.tasks.values()
    )
    block = unit_rows * length * max(6 * size.width, 2 * size.width + 3 * size.mlp_width) * num_bytes
    masked = unit_rows * length * size.vocabulary
    return block + min(masked, SAMPLER_LOGITS) * _BYTES_A_SAMPLER_LOGIT, unit_rows


def _activation_bytes(recipe: Recipe, size: ModelSize, rows: int, length: int, num_bytes: int) -> int:
    """Return what backward keeps: per token about 10 widths and 4 MLP widths a block, without the attention matrix."""
    block = rows * length * (10 * size.width + 4 * size.mlp_width) * num_bytes
    if recipe.policy.gradient_checkpointing:
        return block + rows * length * size.width * size.num_layers * num_bytes
    return block * size.num_layers


def _longest_row(recipe: Recipe) -> int:
    codes = (recipe.policy.image_size // _PICTURE_PATCH) ** 2
    return max(
        PROMPT_TOKENS + task.sampling.completion_length + (codes if task.kind == "understand" else 0)
        for task in recipe.tasks.values()
    )


def _model_size(recipe: Recipe) -> ModelSize | None:
    path = recipe.policy.path
    if is_hub_id(path):
        name = path.rpartition("/")[2].lower()
        return next((size for start, size in released_sizes().items() if name.startswith(start)), None)
    return ModelSize.from_folder(resolve_folder(path), recipe.policy.use)


def _unknown_size(path: str) -> Row:
    why = "not on this machine" if is_hub_id(path) else "a folder without safetensors files that can be read"
    return Row("weights", "not known", f"{path} is {why}; `unigrpo inspect` estimates by config.json")


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
