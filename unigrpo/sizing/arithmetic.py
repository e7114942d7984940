"""What a step of a recipe costs: counts that follow from the recipe; `memory` adds what the files' headers tell."""

from __future__ import annotations

from unigrpo.recipe.checks import image_fit
from unigrpo.settings.policy import PolicySettings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.sft import SftRecipe
from unigrpo.settings.tasks import KindSettings, TaskSettings
from unigrpo.sizing.memory import Row, memory_rows, num_draw_rows, supervised_memory_rows, unknown_size

MEMORY = "memory of the learner, estimated"


def batch_arithmetic(recipe: Recipe) -> dict[str, list[Row]]:
    """Return what one learner step of a checked recipe does, by section, for people to read."""
    memory = memory_rows(recipe) or [unknown_size(recipe.policy.path)]
    return {"tasks": _task_rows(recipe), "a step": _step_rows(recipe), MEMORY: memory}


def supervised_arithmetic(recipe: SftRecipe) -> dict[str, list[Row]]:
    """Return what one step of a checked supervised recipe does, by section, for people to read."""
    tasks = [
        Row(
            name if name == task.kind else f"{name} ({task.kind})",
            f"{task.batch_size:,} demonstrations",
            f"{task.completion_length:,} open tokens each"
            + (", twice" if task.masks == "complementary" else "")
            + (_squares(recipe.policy, task) if task.kind != "reason" else ""),
        )
        for name, task in recipe.tasks.items()
    ]
    memory = supervised_memory_rows(recipe) or [unknown_size(recipe.policy.path)]
    return {"tasks, a step": tasks, MEMORY: memory}


def num_rollouts(recipe: Recipe) -> int:
    """Return N = P * G of a step, over all tasks."""
    return recipe.group_size * sum(task.prompts_per_step for task in recipe.tasks.values())


def num_rollout_rows(recipe: Recipe) -> int:
    """Return rows that go through the model to generate a step's rollouts: guidance counts twice."""
    return sum(_rollout_rows(recipe, task) for task in recipe.tasks.values())


def _rollout_rows(recipe: Recipe, task: TaskSettings) -> int:
    twice = 2 if task.sampling.guidance_scale > 0 else 1
    return task.prompts_per_step * recipe.group_size * task.sampling.num_denoising_steps * twice


def _squares(policy: PolicySettings, task: KindSettings) -> str:
    fit = image_fit(policy, task)
    return f"; pictures become squares of {policy.image_size} pixels by {fit}" if fit else ""


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
        if task.kind == "understand":
            explanation += _squares(recipe.policy, task)
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
