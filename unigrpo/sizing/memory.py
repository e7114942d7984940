"""What a policy holds in memory while it learns and samples, from the sizes in its files' headers: an estimate."""

from __future__ import annotations

from typing import NamedTuple

from unigrpo.models.files.folders import resolve_folder
from unigrpo.plugin import facts
from unigrpo.recipe.checks import is_hub_id
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe
from unigrpo.sizing.model_size import ModelSize, released_sizes
from unigrpo.types import TaskKind

PROMPT_TOKENS = 128
"""Assumed text tokens of a prompt: the real number is known when the data is read."""
_PICTURE_PATCH = 16  # pixels a side of one MAGVIT-v2 code
SAMPLER_LOGITS = 1 << 25
"""Logits that the sampler holds at one time: ``rollouts.draw.ELEMENTS_PER_CHUNK``, which only torch can import."""
_BYTES_A_SAMPLER_LOGIT = 24  # three float32 (with, without and after guidance), probabilities, their float64 sums
SUPERVISED_CHUNK = 1024
"""Positions that go through the head together in a supervised stage: the default of `learner.logprobs`."""


class Row(NamedTuple):
    """One line of the arithmetic."""

    name: str
    value: str
    explanation: str = ""


class _Batch(NamedTuple):
    """The rows that go through the model together, with gradient."""

    rows: int
    length: int
    """Tokens of a row, the prompt's with them."""
    scored: int
    """Positions of them that go through the head together."""


def num_draw_rows(recipe: Recipe) -> int:
    """Return R, the rows of one mask draw over a step's rollouts."""
    chosen = recipe.estimator
    rollouts = recipe.group_size * sum(task.prompts_per_step for task in recipe.tasks.values())
    return rollouts * int(facts(chosen.use, chosen.folder).get("rows_per_rollout", 1))


def memory_rows(recipe: Recipe, size: ModelSize | None = None, length: int | None = None) -> list[Row]:
    """Return what the learner and each actor hold, estimated; nothing where the model's sizes are not known.

    ``size`` is read from the files' headers, or known by a released name, and ``length`` (tokens of a row) is that of
    the recipe's longest, where not given.
    """
    size = size or model_size(recipe.policy)
    if size is None:
        return []
    assumed = f"prompts taken as {PROMPT_TOKENS} text tokens and their pictures' codes" if length is None else ""
    opened = max(task.sampling.completion_length for task in recipe.tasks.values())
    lengths = [_row_length(recipe.policy, task.kind, task.sampling.completion_length) for task in recipe.tasks.values()]
    length = length or max(lengths)
    micro = min(recipe.learner.micro_batch_rows, num_draw_rows(recipe))
    batch = _Batch(rows=micro, length=length, scored=min(recipe.learner.logprob_chunk, micro * opened))
    needs_copy = not recipe.lora.enabled and recipe.kl.needs_reference
    held, passing = _learner(recipe.policy, recipe.lora, size, batch, has_reference=needs_copy)
    total, update = sum(amount for _, amount, _ in held), sum(amount for _, amount, _ in passing)
    rows = [*held, *passing]
    sampler, unit_rows = _sampler_bytes(recipe, size, length)
    sampled = f"up to {unit_rows} rows of about {length:,} tokens and {SAMPLER_LOGITS / 1e6:.0f} M logits"
    actors = []
    if recipe.rollouts.num_actors:
        copy = sum(amount for name, amount, _ in held if name in ("weights", "adapter")) + sampler
        why = (
            f"x {recipe.rollouts.num_actors} actors: a copy of the policy (on one CPU machine they share the file's "
            f"pages) and the sampler's {_gigabytes(sampler)}: {sampled}"
        )
        actors = [Row("each actor, besides", _gigabytes(copy), why)]
        total += update
    else:
        rows.append(("sampler", sampler, f"{sampled}, between updates: not on top of activations"))
        total += max(update, sampler)
    return [
        *(Row(name, _gigabytes(amount), why) for name, amount, why in rows),
        Row("total", _gigabytes(total), assumed),
        *actors,
    ]


def supervised_memory_rows(recipe: SftRecipe) -> list[Row]:
    """Return what a supervised stage holds, estimated; nothing where the model's sizes are not known."""
    size = model_size(recipe.policy)
    if size is None:
        return []
    batches = []
    for task in recipe.tasks.values():
        rows = task.batch_size * (2 if task.masks == "complementary" else 1)
        scored = min(SUPERVISED_CHUNK, rows * task.completion_length)
        length = _row_length(recipe.policy, task.kind, task.completion_length)
        batches.append(_Batch(rows=rows, length=length, scored=scored))
    largest = max(batches, key=lambda batch: batch.rows * batch.length)
    held, passing = _learner(recipe.policy, recipe.lora, size, largest, has_reference=False)
    total = sum(amount for _, amount, _ in (*held, *passing))
    assumed = f"prompts taken as {PROMPT_TOKENS} text tokens and their pictures' codes"
    return [
        *(Row(name, _gigabytes(amount), why) for name, amount, why in (*held, *passing)),
        Row("total", _gigabytes(total), assumed),
    ]


def unknown_size(path: str) -> Row:
    """Return the row of a model whose sizes are not known."""
    why = "not on this machine" if is_hub_id(path) else "a folder without safetensors files that can be read"
    return Row("weights", "not known", f"{path} is {why}; `unigrpo inspect` estimates by config.json")


_Part = tuple[str, int, str]
"""Name, bytes and explanation."""


def _learner(
    policy: PolicySettings, lora: LoraSettings, size: ModelSize, batch: _Batch, *, has_reference: bool
) -> tuple[list[_Part], list[_Part]]:
    """Return what is held all the time, and what one pass with gradient holds besides."""
    num_bytes = 2 if policy.dtype == "bfloat16" else 4
    weights = size.num_parameters * num_bytes
    by_name = f", known by the name {policy.path}" if is_hub_id(policy.path) else ""
    held = [("weights", weights, f"{size.num_parameters / 1e6:,.1f} M in {policy.dtype}{by_name}")]
    trained, each = size.num_parameters, num_bytes
    if lora.enabled:
        trained, each = size.num_adapter_parameters(lora.r, lora.targets), 4
        held.append(
            (
                "adapter",
                trained * 4,
                f"LoRA of rank {lora.r}: {trained / 1e6:.2f} M weights in float32, on {_reached(size, lora)}",
            )
        )
    elif has_reference:
        held.append(("reference", weights, "the frozen reference: a copy of the weights"))
    held.append(("gradients, AdamW", trained * (8 + each), "one gradient and two moments a trained weight"))
    recomputed = ", each block recomputed in backward" if policy.gradient_checkpointing else ""
    logits = batch.scored * size.vocabulary * (14 if num_bytes == 2 else 12)
    passing = [
        (
            "activations",
            activation_bytes(policy, lora, size, batch.rows, batch.length),
            f"{batch.rows} rows of about {batch.length:,} tokens{recomputed}",
        ),
        (
            "logits chunk",
            logits,
            f"{batch.scored:,} positions x {size.vocabulary:,} ids: log-softmax and two gradients in float32",
        ),
    ]
    return held, passing


def _reached(size: ModelSize, lora: LoraSettings) -> str:
    """Return the short names of the layers that LoRA wraps."""
    names = [name for name in size.linears if lora.targets is None or name in lora.targets]
    return ", ".join(names) or f"{len(lora.targets or ()):,} layers by their full names, not counted here"


def activation_bytes(policy: PolicySettings, lora: LoraSettings, size: ModelSize, rows: int, length: int) -> int:
    """Return what backward keeps of rows of a length: what autograd saves of a block, without the attention matrix.

    A token of a block: queries, keys, values, attention's output; gate, up and the gate's activation, of the
    feed-forward width; the input of both norms in float32. Then the inputs of what trains: shared by layers of one
    input in float32, but a float32 copy a layer where a bfloat16 layer has LoRA.
    """
    num_bytes = 2 if policy.dtype == "bfloat16" else 4
    width, inner = size.width, size.mlp_width
    token = (4 * width + 3 * inner) * num_bytes + 8 * width
    if lora.enabled and num_bytes == 2:
        # A layer's inputs are half of its inputs and outputs, over a block: what is wide once is narrow once.
        token += 4 * size.num_adapter_parameters(1, lora.targets) // (2 * size.num_layers)
    else:
        token += (2 * width + inner + (0 if lora.enabled else 2 * width)) * num_bytes
    if policy.gradient_checkpointing:
        return rows * length * (token + width * size.num_layers * num_bytes)
    return rows * length * token * size.num_layers


def _sampler_bytes(recipe: Recipe, size: ModelSize, length: int) -> tuple[int, int]:
    """Return what sampling a unit holds at one time, and the unit's rows: one block without gradient, and logits."""
    num_bytes = 2 if recipe.policy.dtype == "bfloat16" else 4
    unit_rows = max(
        min(recipe.rollouts.rows_per_unit, task.prompts_per_step * recipe.group_size)
        * (2 if task.sampling.guidance_scale > 0 else 1)
        for task in recipe.tasks.values()
    )
    block = unit_rows * length * max(6 * size.width, 2 * size.width + 3 * size.mlp_width) * num_bytes
    masked = unit_rows * length * size.vocabulary
    return block + min(masked, SAMPLER_LOGITS) * _BYTES_A_SAMPLER_LOGIT, unit_rows


def _row_length(policy: PolicySettings, kind: TaskKind, opened: int) -> int:
    codes = (policy.image_size // _PICTURE_PATCH) ** 2
    return PROMPT_TOKENS + opened + (codes if kind == "understand" else 0)


def model_size(policy: PolicySettings) -> ModelSize | None:
    """Return a model's sizes by its files' headers or its released name; None where neither tells."""
    if is_hub_id(policy.path):
        name = policy.path.rpartition("/")[2].lower()
        return next((size for start, size in released_sizes().items() if name.startswith(start)), None)
    return ModelSize.from_folder(resolve_folder(policy.path), policy.use)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
