"""What types cannot see in a recipe: counts that do not divide, settings that contradict, files that are not there."""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from unigrpo.data.sources import COLUMN_NAMES, check_jsonl, template_problem
from unigrpo.files import optional_file
from unigrpo.models.families import FOLDER, abilities, family_named_by, find_family
from unigrpo.models.files.config_file import context_length
from unigrpo.models.files.folders import HUB_ID, read_json, resolve_folder
from unigrpo.plugin import PluginError, facts, locate, locate_choice, members_of
from unigrpo.recipe.feasible import endless_problems, file_problems, weight_problems
from unigrpo.recipe.named_code import choice_problems, code_problems
from unigrpo.recipe.reward_calls import call_problems
from unigrpo.recipe.reward_needs import needs_problems
from unigrpo.rewards.runtime.reward_checks import composition_problems
from unigrpo.settings.base import Choice
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.sft import SftRecipe
from unigrpo.settings.tasks import DataSettings, KindSettings, SamplingSettings
from unigrpo.types import TaskKind

PICTURE_KINDS = ("understand", "imagine")
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
NAME_RULE = "a name is part of its metrics' names; wanted letters, digits, _, - and . only, at most 100"
LOWEST_TEMPERATURE = 1e-3
"""Below it probabilities are those of temperature 0, and logits divided by it no longer finite."""


def problems_of_training(recipe: Recipe) -> list[str]:
    """Return one line a problem of a training recipe; empty where it can run."""
    return [*problems_of_evaluation(recipe), *_untrained(recipe.policy, recipe.tasks)]


def problems_of_evaluation(recipe: Recipe) -> list[str]:
    """Return one line a problem of a recipe that is only evaluated, by a family that may not train its tasks."""
    problems = [*_run_name(recipe.name), *_policy(recipe.policy, recipe.tasks), *_names(recipe.tasks)]
    for task, settings in recipe.tasks.items():
        problems += _data(settings.data, task, settings.kind, needs_eval=recipe.evaluate.enabled)
        problems += _sampling(settings.sampling, settings.kind, f"tasks.{task}.sampling")
    problems += [*_rewards(recipe), *choice_problems(recipe), *_precision(recipe.policy, recipe.lora)]
    problems += [*file_problems(recipe.rewards), *call_problems(recipe), *needs_problems(recipe)]
    problems += weight_problems(recipe.policy, recipe.lora)
    return [*problems, *_unsampled(recipe), *_rollouts(recipe), *_accuracy(recipe), *endless_problems(recipe)]


def problems_of_supervision(recipe: SftRecipe) -> list[str]:
    """Return one line a problem of a supervised recipe; empty where it can run."""
    problems = [*_run_name(recipe.name), *_policy(recipe.policy, recipe.tasks), *_names(recipe.tasks)]
    for task, settings in recipe.tasks.items():
        problems += _data(settings.data, task, settings.kind, needs_eval=False)
        if settings.noise and settings.data.jsonl is not None:
            problems.append(f"tasks.{task}.noise: a file's demonstrations are as they are; wanted 0, or data.use")
        if settings.kind == "imagine":
            problems += _square(settings.completion_length, f"tasks.{task}.completion_length")
    problems += [*choice_problems(recipe), *_precision(recipe.policy, recipe.lora)]
    problems += weight_problems(recipe.policy, recipe.lora)
    return [*problems, *_untrained(recipe.policy, recipe.tasks)]


def problems_of_scoring(rewards: dict[str, RewardSettings]) -> list[str]:
    """Return one line a problem of rewards that stand alone, whatever their tasks; empty where they can be made."""
    alone = [problem for name, reward in rewards.items() for problem in _one_reward(reward, f"rewards.{name}")]
    return [*alone, *composition_problems(rewards), *file_problems(rewards)]


def _run_name(name: str) -> Iterator[str]:
    if not name.strip() or name.startswith((".", "-")) or re.search(r"[/\\\x00-\x1f]", name):
        yield f"name: {name!r} names no folder, and runs/NAME-SEED-N is one; wanted letters, digits, - and _"


def _names(tasks: Mapping[str, KindSettings]) -> Iterator[str]:
    kinds = get_args(TaskKind)
    if not tasks:
        yield f"tasks: none; wanted at least one of {', '.join(kinds)}"
    for name, task in tasks.items():
        if not re.fullmatch(NAME, name):
            yield f"tasks.{name}: {NAME_RULE}"
        if name in kinds and task.kind != name:
            yield f"tasks.{name}.kind: given {task.kind}; {name} is a kind itself; give the task a name that is none"


def is_hub_id(path: str) -> bool:
    """Return whether it has the form owner/name and is no folder of this machine."""
    return bool(HUB_ID.match(path)) and not Path(path).exists()


def reads_pixels(path: str, use: str | None = None) -> bool:
    """Return whether a checkpoint has a vision encoder of its own, so that its picture questions need no image codes.

    A folder's or asset's config.json tells, or the name of a hub id; ``use`` is the family, where it is given.
    """
    family = _family(path, use)
    return family is not None and abilities(family).pictures == "pixels"


def image_fit(policy: PolicySettings, task: KindSettings) -> str | None:
    """Return in words how the pictures of a task's data become squares; None where none do, or it is not known."""
    family = _family(policy.path, policy.use)
    if family is None or abilities(family).pictures != "codes":
        return None
    if task.data.image_fit is not None:
        return f"{task.data.image_fit}, by data.image_fit"
    if policy.image_fit is not None:
        return f"{policy.image_fit}, by policy.image_fit"
    return f"{abilities(family).image_fit}, as in the release"


def _family(path: str, use: str | None) -> str | None:
    return use or (family_named_by(path) if is_hub_id(path) else find_family(_config(path)))


def _config(path: str) -> dict[str, Any]:
    """Return the config.json of a folder or asset; nothing where there is none, or for a hub id."""
    if is_hub_id(path):
        return {}
    try:
        file = (resolve_folder(path) if path.startswith("asset:") else Path(path)) / "config.json"
    except FileNotFoundError:
        return {}  # `_folder` says so
    return read_json(file) if optional_file(file) else {}


def _untrained(settings: PolicySettings, tasks: Mapping[str, KindSettings]) -> Iterator[str]:
    """Refuse tasks that the family cannot train; a hub id is asked when it is loaded (`models.opening`)."""
    family = find_family(_config(settings.path), settings.use)
    if family is not None and not _wrong_family(settings):
        can = abilities(family)
        yield from (f"tasks.{name}: {can.why_untrained}" for name, task in tasks.items() if task.kind in can.untrained)


def _wrong_family(settings: PolicySettings) -> list[str]:
    try:
        if settings.use is not None:
            locate_choice(settings.use, FOLDER)
    except PluginError as error:
        return [f"policy.use: {error}"]
    return []


def _policy(settings: PolicySettings, tasks: Mapping[str, KindSettings]) -> Iterator[str]:
    yield from _folder(settings.path, "policy.path", "config.json", "a checkpoint")
    wrong = _wrong_family(settings)
    yield from wrong
    if settings.image_tokenizer is not None:
        yield from _folder(settings.image_tokenizer, "policy.image_tokenizer", "*.safetensors", "an image tokenizer")
    elif not wrong:
        has_pixels = reads_pixels(settings.path, settings.use)
        kinds = set(PICTURE_KINDS) - ({"understand"} if has_pixels else set())
        for name in sorted(name for name, task in tasks.items() if task.kind in kinds):
            yield f"policy.image_tokenizer: missing; the task {name} needs one to turn pictures into codes"
    if not wrong and (family := _family(settings.path, settings.use)) and abilities(family).pictures != "codes":
        fits = {"policy": settings.image_fit} | {
            f"tasks.{name}.data": task.data.image_fit for name, task in tasks.items()
        }
        for key, fit in fits.items():
            if fit is not None:
                yield f"{key}.image_fit: {fit}, and {settings.path} makes no squares of pictures; leave it out"
    if settings.adapter is not None:
        yield from _folder(settings.adapter, "policy.adapter", "adapter_model.safetensors", "a PEFT adapter")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", settings.device):
        yield f"policy.device: given {settings.device!r}; wanted cpu, cuda or cuda:N"
    if settings.revision is not None and not is_hub_id(settings.path):
        yield f"policy.revision: {settings.path} is a folder, which has no revisions; leave it out"


def _folder(path: str, key: str, wanted_file: str, noun: str) -> Iterator[str]:
    if is_hub_id(path):
        return
    try:
        folder = resolve_folder(path) if path.startswith("asset:") else Path(path)
    except FileNotFoundError as error:
        yield f"{key}: {error}"
        return
    if not folder.is_dir():
        yield f"{key}: there is no folder {path}; wanted {noun}, a hub id such as owner/name, or asset:NAME"
    elif next(folder.glob(wanted_file), None) is None:
        yield f"{key}: {path} is not {noun}: it holds no {wanted_file}"


def _data(data: DataSettings, task: str, kind: TaskKind, *, needs_eval: bool) -> Iterator[str]:
    key = f"tasks.{task}.data"
    if (data.use is None) == (data.jsonl is None):
        given = "both use and jsonl" if data.use else "neither use nor jsonl"
        yield f"{key}: {given}; wanted one of them"
    if data.use is not None:
        yield from code_problems(data.use, data.arguments, key, num_supplied=2)
        yield from _source_class(data.use, key)
        if data.columns or data.eval_jsonl:
            yield f"{key}: columns and eval_jsonl describe a JSONL file, and {data.use} is not one"
    elif data.arguments:
        yield f"{key}.arguments: there is no `use` that would take them"
    if data.jsonl is not None:
        yield from _jsonl(data.jsonl, task, kind, data, f"{key}.jsonl")
        if needs_eval and data.eval_jsonl is None:
            yield f"{key}.eval_jsonl: missing; name held-out prompts, or set evaluate.enabled to false"
    if data.eval_jsonl is not None:
        yield from _jsonl(data.eval_jsonl, task, kind, data, f"{key}.eval_jsonl")
    yield from _wording(data, key)


def _source_class(use: str, key: str) -> Iterator[str]:
    try:
        located = locate(use)
    except PluginError:
        return  # `_named_code` says so
    members = members_of(located)
    if isinstance(located.statement, ast.FunctionDef | ast.AsyncFunctionDef):
        yield f"{key}.use: {use} is a function; wanted a class whose objects have __getitem__(index) -> Prompt"
    elif members is not None and "__getitem__" not in members:
        yield f"{key}.use: {use} has no __getitem__(index) -> Prompt, by which prompts are asked for"


def _wording(data: DataSettings, key: str) -> Iterator[str]:
    for name in data.columns:
        if name not in COLUMN_NAMES:
            yield f"{key}.columns.{name}: not a name of ours; wanted one of {', '.join(COLUMN_NAMES)}"
    if problem := template_problem(data.template):
        yield f"{key}.template: {problem}"


def _jsonl(path: str, task: str, kind: TaskKind, data: DataSettings, key: str) -> Iterator[str]:
    if not os.path.lexists(path):
        yield f"{key}: there is no file {path}"
        return
    try:
        check_jsonl(Path(path), kind, data.columns, task=task, max_pixels=data.max_pixels)
    except (ValueError, OSError) as error:
        yield f"{key}: {error}"


def _sampling(sampling: SamplingSettings, kind: TaskKind, key: str) -> Iterator[str]:
    length, num_steps = sampling.completion_length, sampling.num_denoising_steps
    block = sampling.block_length or length
    num_blocks = max(1, length // block)
    if length % block:
        yield f"{key}: completion_length {length} is not a multiple of block_length {block}"
    elif num_steps % num_blocks:
        yield (
            f"{key}: num_denoising_steps {num_steps} does not divide over {num_blocks} blocks "
            f"(completion_length {length} / block_length {block}); wanted a multiple of {num_blocks}"
        )
    schedule, order = _facts(sampling.schedule), _facts(sampling.remasking)
    if schedule.get("is_fixed") and num_steps > length:
        yield f"{key}: num_denoising_steps {num_steps} is more than the {length} tokens there are to fill"
    if schedule.get("is_for_pictures") and kind != "imagine":
        yield f"{key}.schedule: {sampling.schedule.use} is a schedule of pictures; wanted linear for {kind}"
    if kind == "imagine":
        yield from _square(length, f"{key}.completion_length")
        if block != length:
            yield f"{key}.block_length: a picture is one block; leave it out"
    yield from _temperature(sampling, order.get("reads"), num_steps // num_blocks, f"{key}.temperature")


def _unsampled(recipe: Recipe) -> Iterator[str]:
    """Refuse what the family or the length of the checkpoint's rows does not allow, as far as its config.json tells."""
    family, context = _family(recipe.policy.path, recipe.policy.use), context_length(_config(recipe.policy.path))
    is_known = family is not None and not _wrong_family(recipe.policy)
    for task, settings in recipe.tasks.items():
        key, sampling = f"tasks.{task}.sampling", settings.sampling
        if sampling.editing_threshold is not None and is_known and not abilities(str(family)).is_edited:
            yield f"{key}.editing_threshold: {sampling.editing_threshold:g}, and {family} does not edit; leave it out"
        if context is not None and sampling.completion_length >= context:
            yield f"{key}.completion_length: {sampling.completion_length}, and a row has {context}; leave a prompt room"


def _temperature(sampling: SamplingSettings, reads: str | None, steps_a_block: int, key: str) -> Iterator[str]:
    """Refuse what makes all completions of a group equal: nothing is random, or nothing of it decides anything."""
    if 0 < sampling.temperature < LOWEST_TEMPERATURE:
        yield f"{key}: given {sampling.temperature:g}; wanted 0, or at least {LOWEST_TEMPERATURE:g}"
    is_order_random = reads in ("noise", "coins") or (sampling.remasking_temperature > 0 and reads != "positions")
    is_choosing = steps_a_block > 1 and sampling.block_length != 1
    if sampling.temperature == 0 and not (is_choosing and (is_order_random or ":" in sampling.remasking.use)):
        yield f"{key}: 0 makes all completions of a group equal, so that nothing is learnt; wanted more"


def _facts(chosen: Choice) -> dict[str, Any]:
    """Return what the class of a choice says of itself; nothing where there is no such class, which `_choices` says."""
    try:
        return facts(chosen.use, chosen.folder)
    except PluginError:
        return {}


def _square(num_codes: int, key: str) -> Iterator[str]:
    side = math.isqrt(num_codes)
    if side * side != num_codes:
        yield f"{key}: {num_codes} codes make no square picture; wanted {side**2} or {(side + 1) ** 2}"


def _rewards(recipe: Recipe) -> Iterator[str]:
    if not recipe.rewards:
        yield "rewards: none; wanted at least one"
    yield from composition_problems(recipe.rewards)
    for name, reward in recipe.rewards.items():
        if not re.fullmatch(NAME, name):
            yield f"rewards.{name}: {NAME_RULE}"
        yield from _one_reward(reward, f"rewards.{name}")
        for task in reward.tasks or ():
            if task not in recipe.tasks:
                yield f"rewards.{name}.tasks: {task} is {_no_task(recipe)}"
    for task in recipe.tasks:
        weights = [reward.weight for reward in recipe.rewards.values() if reward.tasks is None or task in reward.tasks]
        if recipe.rewards and not any(weights):
            yield f"rewards: none with a weight applies to the task {task}, so that it would learn nothing"


def _no_task(recipe: Recipe) -> str:
    """Return what a name is that is none of a recipe's tasks, with those that there are."""
    known = [name if name == task.kind else f"{name} ({task.kind})" for name, task in sorted(recipe.tasks.items())]
    return f"no task of this recipe and no kind of one; it has {', '.join(known) or 'none'}"


def _one_reward(reward: RewardSettings, key: str) -> Iterator[str]:
    if reward.env is None or ".py:" in reward.use:  # Else it may be installed in that environment alone.
        yield from code_problems(reward.use, reward.arguments, key)
    if reward.tasks is not None and not reward.tasks:
        yield f"{key}.tasks: empty; leave it out for every task, or leave the reward out"


def _precision(policy: PolicySettings, lora: LoraSettings) -> Iterator[str]:
    if policy.dtype == "bfloat16" and not lora.enabled:
        yield (
            "policy.dtype: bfloat16 with lora.enabled=false trains the weights themselves, and AdamW's small steps "
            "round to nothing in bfloat16; set policy.dtype=float32 or lora.enabled=true"
        )


def _rollouts(recipe: Recipe) -> Iterator[str]:
    rows = recipe.rollouts.rows_per_unit
    if recipe.group_size > rows:
        yield (
            f"rollouts.rows_per_unit: {rows} rows do not hold one whole group of group_size {recipe.group_size}; "
            f"wanted at least {recipe.group_size}"
        )
    if recipe.rollouts.num_gpus and not recipe.rollouts.num_actors:
        yield "rollouts.num_gpus: there are no actors to give GPUs to; set rollouts.num_actors"
    if recipe.rollouts.num_actors and not recipe.rollouts.num_gpus and recipe.policy.device.startswith("cuda"):
        yield (
            f"rollouts.num_gpus: 0 hides every GPU from the actors, which are to hold the policy on "
            f"policy.device={recipe.policy.device}; set rollouts.num_gpus (0.5: two actors share a GPU), or "
            "rollouts.num_actors=0 to sample in this process, or policy.device=cpu"
        )


def _accuracy(recipe: Recipe) -> Iterator[str]:
    for task, name in recipe.evaluate.accuracy.items():
        key = f"evaluate.accuracy.{task}"
        if task not in recipe.tasks:
            yield f"{key}: {task} is {_no_task(recipe)}"
        elif name not in recipe.rewards:
            yield f"{key}: there is no reward {name!r}; the recipe has {', '.join(recipe.rewards) or 'none'}"
        elif (tasks := recipe.rewards[name].tasks) is not None and task not in tasks:
            yield f"{key}: the reward {name} does not apply to {task}"
