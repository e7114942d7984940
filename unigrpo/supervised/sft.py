"""The supervised stage: masked-diffusion training on demonstrations of one task or several in one batch.

Its departures from the reference: padding is hidden from attention, the visible picture markers are not scored, the
times of a batch are evenly spread. Everything random is a function of (seed, step, row), so a
resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unigrpo.data.limits import within_limits
from unigrpo.data.sources import load_prompts
from unigrpo.errors import UserError
from unigrpo.files import json_text, write_atomically, writing
from unigrpo.learner.logprobs import token_logprobs
from unigrpo.learner.optimizer import Optimizer, load_training, save_training
from unigrpo.models.adapter import save_adapter, save_merged
from unigrpo.models.opening import open_policy, refuse_untrained
from unigrpo.recipe.doubts import doubts_of_supervision
from unigrpo.recipe.load import load_sft_recipe
from unigrpo.runs.changes import RECIPE, Change, changes_made, described, planned_changes, record_changes
from unigrpo.runs.checkpoint import Saves, latest_checkpoint, newest_step, save_checkpoint
from unigrpo.runs.directory import SUMMARY, new_run, old_run
from unigrpo.runs.identity import check_identity
from unigrpo.runs.stopping import stop_requests
from unigrpo.runs.summary import finished_summary, retire_end
from unigrpo.runs.trackers.base import Tracker, Trackers
from unigrpo.settings.sft import SftRecipe
from unigrpo.supervised.losses import text_weights
from unigrpo.supervised.rows import Demonstrations, Rows, add_noise, caching_codes, with_complement
from unigrpo.types import ModelInput, TaskKind

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

POLICY_FOLDER = "policy"
ADAPTER_FOLDER = "adapter"


def run_sft(
    recipe: SftRecipe,
    out: Path,
    tracker: Tracker | None = None,
    *,
    is_resumed: bool = False,
    has_lock: bool = True,
    accepts_changes: bool = False,
    changes: Sequence[Change] = (),
) -> dict[str, Any]:
    """Train on demonstrations and write ``out/policy``, a whole checkpoint in the base's own layout.

    The run directory holds recipe.yaml, environment.json, metrics.jsonl, checkpoints/ and summary.json beside it, and
    after LoRA ``adapter/``, which a training recipe takes as ``policy.adapter``. A run that fails before it has a
    result (a demonstration that does not fit) leaves nothing.
    ``out`` is a new run directory, unless the run is resumed from its newest whole checkpoint; ``tracker`` hears of it
    beside the recipe's own; ``has_lock`` is false where the file system has no locks; ``accepts_changes`` says that
    data, code or base may have changed since, and ``changes`` are those of the recipe.

    Returns:
        The summary: ``loss`` and ``loss/<task>`` (means since the last logged step), ``num_steps``, ``wall_s``,
        ``seed``, ``policy``.

    Raises:
        UserError: if ``out`` already holds a run, another process works in it, a resumed one has no checkpoint, or a
            gradient is not finite.
    """
    if is_resumed:
        summary = finished_summary(out)
        if summary is not None and not changes and summary.num_steps >= recipe.num_steps:
            Trackers([], tracker).phase("this run has finished already")
            return summary.model_dump(exclude_unset=True)
        with old_run(out, has_lock=has_lock):
            check_identity(recipe, out, accepts_changes=accepts_changes)
            return _run(recipe, out, tracker, changes, is_resumed=True)
    with new_run(recipe, out, has_lock=has_lock):
        return _run(recipe, out, tracker, (), is_resumed=False)


def resume_sft(
    out: Path,
    tracker: Tracker | None = None,
    overrides: Sequence[str] = (),
    *,
    has_lock: bool = True,
    accepts_changes: bool = False,
) -> dict[str, Any]:
    """Go on with a supervised run; overrides hold from its newest checkpoint on, and are kept in the run.

    A finished run that is made longer goes on from its last checkpoint, which is before its end: the steps from there
    are taken again.

    Raises:
        UserError: as `run_sft`, and if an override would make its steps other than the recipe says.
    """
    wanted = load_sft_recipe(out / RECIPE, list(overrides))
    stored = load_sft_recipe(out / RECIPE) if overrides else wanted
    changes = planned_changes(out, stored, wanted, newest_step(out))
    how = {"has_lock": has_lock, "accepts_changes": accepts_changes}
    return run_sft(wanted, out, tracker, is_resumed=True, changes=changes, **how)


def _run(
    recipe: SftRecipe, out: Path, tracker: Tracker | None, changes: Sequence[Change], *, is_resumed: bool
) -> dict[str, Any]:
    start = time.perf_counter()
    for doubt in doubts_of_supervision(recipe):
        logger.warning(doubt)
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    with ExitStack() as stack:
        trackers = Trackers(recipe.tracking.use, tracker)
        stack.callback(trackers.close)
        trackers.phase("loading the policy")
        training = Training(recipe)
        first_step, means = 0, _Means({})
        if is_resumed:
            checkpoint = latest_checkpoint(out, partial(load_training, training.policy, training.optimizer))
            if checkpoint is None:
                raise UserError(f"{out} has no whole checkpoint to go on from; start the recipe anew in another folder")
            first_step, means = checkpoint.step, _Means(checkpoint.state.unlogged)
            _take_over(recipe, out, trackers, changes, first_step)
        trackers.phase("training")
        trackers.start(recipe, out, first_step)
        metrics: dict[str, Any] = {}
        rows_of_steps = stack.enter_context(training.prefetching(first_step))
        is_asked = stack.enter_context(stop_requests(lambda: False))
        saves = Saves(recipe.checkpoint)
        for step, rows in enumerate(rows_of_steps, start=first_step):
            means.add(training.step(step, rows))
            done = step + 1
            trackers.progress(done, recipe.num_steps, "steps")
            if done % recipe.log_every == 0 or done == recipe.num_steps:
                metrics = {"step": done, **means.take()}
                trackers.step(metrics)
            is_stopping = is_asked()
            if done < recipe.num_steps and (is_stopping or saves.is_due(done)):
                saves.save(partial(training.save, out, done, means.values), is_last=is_stopping)
            if is_stopping and done < recipe.num_steps:
                raise is_asked.error()
        trackers.phase("writing the policy")
        with writing(out / POLICY_FOLDER):
            _write_policy(training.policy, out)
        summary = {
            **{key: value for key, value in metrics.items() if key.startswith("loss")},
            "num_steps": recipe.num_steps,
            "wall_s": round(time.perf_counter() - start, 1),
            "seed": recipe.seed,
            "policy": str(out / POLICY_FOLDER),
            "status": "finished",
            **changes_made(out),
        }
        write_atomically(out / SUMMARY, json_text(summary, indent=1) + "\n")
        trackers.done(summary)
    return summary


def _take_over(recipe: SftRecipe, out: Path, trackers: Trackers, changes: Sequence[Change], step: int) -> None:
    """Write down what a resumed run changes; its old end is none any more."""
    if any(one.key == "num_steps" for one in changes):
        retire_end(out)
    record_changes(out, recipe, changes, step)
    for key, text in described(changes).items():
        trackers.phase(f"{key}: {text}")


class Training:
    """The policy, its optimizer and its demonstrations."""

    def __init__(self, recipe: SftRecipe) -> None:
        """Open what a recipe names."""
        self.recipe = recipe
        self.policy: Any = open_policy(recipe.policy, recipe.lora, recipe.seed)
        refuse_untrained(self.policy, [task.kind for task in recipe.tasks.values()])
        for parameter in self.policy.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()  # loaded weights may be the mapped file
        self.optimizer = Optimizer(self.policy.module, recipe, recipe.num_steps)
        encoder = caching_codes(self.policy)
        self.demonstrations = {
            task: Demonstrations(
                encoder,
                task,
                task_settings,
                within_limits(
                    load_prompts(task_settings.data, task, task_settings.kind, "train", recipe.seed, are_taught=True),
                    self.policy,
                    task_settings.data,
                    task=task,
                    completion_length=task_settings.completion_length,
                    is_taught=True,
                ),
                seed=recipe.seed,
                caption_dropout=recipe.caption_dropout,
            )
            for task, task_settings in recipe.tasks.items()
        }

    def demonstrations_of(self, step: int) -> dict[str, Rows]:
        """Return the rows of a step by task."""
        is_clean = step < self.recipe.clean_steps
        return {task: source.rows(step, is_clean=is_clean) for task, source in self.demonstrations.items()}

    @contextmanager
    def prefetching(self, first_step: int) -> Iterator[Iterator[dict[str, Rows]]]:
        """Give the rows of every step in turn; a thread makes those of the next step while one is trained."""
        num_threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(num_threads)) as thread:

            def rows_of_steps() -> Iterator[dict[str, Rows]]:
                following = thread.submit(self.demonstrations_of, first_step)
                for step in range(first_step, self.recipe.num_steps):
                    rows = following.result()
                    if step + 1 < self.recipe.num_steps:
                        following = thread.submit(self.demonstrations_of, step + 1)
                    yield rows

            yield rows_of_steps()

    def step(self, step: int, rows_by_task: dict[str, Rows]) -> dict[str, float]:
        """Take one optimizer step over the rows of all tasks and return its metrics."""
        start = time.perf_counter()
        metrics: dict[str, float] = {}
        total = 0.0
        for task, rows in rows_by_task.items():
            settings, eps = self.recipe.tasks[task], self.recipe.min_mask_ratio
            loss = task_loss(self.policy, settings.kind, rows, eps, is_complementary=settings.masks == "complementary")
            weighted = settings.weight * loss
            weighted.backward()
            metrics[f"loss/{task}"] = loss.item()
            total += weighted.item()
        grad_norm = self.optimizer.clip_gradients().item()
        if not math.isfinite(grad_norm):
            raise UserError(f"the gradient of step {step + 1} is {grad_norm}; lower lr or raise warmup_steps")
        self.optimizer.update(step)
        self.optimizer.clear_gradients()
        return {
            "loss": total,
            **metrics,
            "grad_norm": grad_norm,
            "lr": self.optimizer.rate(step),
            "timing_s/step": time.perf_counter() - start,
        }

    def save(self, out: Path, step: int, unlogged: dict[str, list[float]]) -> None:
        """Write a checkpoint to resume from, with the metrics that no logged mean holds yet."""
        state = {"seed": self.recipe.seed, "unlogged": unlogged}
        write = partial(save_training, self.policy, self.optimizer)
        save_checkpoint(out, step, state, write, self.recipe.checkpoint.keep, self.optimizer.num_bytes)


def task_loss(
    policy: Any, kind: TaskKind, rows: Rows, min_mask_ratio: float, *, is_complementary: bool = False
) -> Tensor:
    """Return the loss of one task's rows, in nats; logits exist at the masked positions only.

    Text: the sum over masked tokens of cross-entropy / mask probability / answer length, averaged over rows (the
    reference's loss with answer lengths). Pictures: the mean over all masked codes. Complementary masks: the mean over
    the masked tokens of both halves, without weights (LaViDa's loss).
    """
    device = policy.device
    noisy = add_noise(rows, kind=kind, mask_token_id=policy.vocabulary.mask_token_id, min_mask_ratio=min_mask_ratio)
    if is_complementary:
        rows, noisy = with_complement(rows, noisy, policy.vocabulary.mask_token_id)
    clean_ids = rows.clean_ids.to(device)
    model_input = ModelInput(
        token_ids=noisy.token_ids.to(device),
        is_padding=None if rows.is_padding is None else rows.is_padding.to(device),
        clean_ids=clean_ids,
        image_features=rows.image_features,
        prompt_lengths=rows.prompt_lengths.to(device),
    )
    logprobs = token_logprobs(policy, model_input, clean_ids, noisy.is_masked.to(device))
    if kind == "imagine" or is_complementary:
        return -logprobs.mean()
    weights = text_weights(noisy.is_masked, noisy.mask_prob, rows.is_open.sum(dim=1))
    return -(weights.to(device) * logprobs).sum()


class _Means:
    """Means of the metrics since they were last taken."""

    def __init__(self, values: dict[str, list[float]]) -> None:
        self.values: dict[str, list[float]] = defaultdict(list, values)

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.values[name].append(value)

    def take(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self.values.items()}
        self.values.clear()
        return means


def _write_policy(policy: Any, out: Path) -> None:
    """Write the released layout under a temporary name, then rename it."""
    temporary, folder = out / f".{POLICY_FOLDER}", out / POLICY_FOLDER
    for leftover in (temporary, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir()
    save_merged(policy, temporary)
    temporary.rename(folder)
    if policy.adapter is not None:
        save_adapter(policy, out / ADAPTER_FOLDER)
