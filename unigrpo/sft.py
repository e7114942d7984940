"""The supervised stage: masked-diffusion training on demonstrations of the three tasks in one batch.

Its departures from the reference: padding is hidden from attention, the visible picture markers are not scored, the
times of a batch are evenly spread, norms are not decayed. Everything random is a function of (seed, step, row), so a
resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unigrpo.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from unigrpo.data import load_prompts
from unigrpo.errors import UserError
from unigrpo.files import write_atomically
from unigrpo.logprobs import token_logprobs
from unigrpo.metrics import MetricLog
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora, merge_adapter, save_adapter, save_merged
from unigrpo.models.opening import refuse_untrained
from unigrpo.observer import Observer, SilentObserver
from unigrpo.recipe import dump_recipe
from unigrpo.run import ENVIRONMENT
from unigrpo.run import environment as environment
from unigrpo.settings import SftRecipe
from unigrpo.sft_losses import text_weights
from unigrpo.sft_rows import Demonstrations, RememberedCodes, Rows, add_noise, with_complement
from unigrpo.sft_weights import load_training_state, save_training_state
from unigrpo.types import ModelInput, Task

if TYPE_CHECKING:
    from torch import Tensor

POLICY_FOLDER = "policy"
ADAPTER_FOLDER = "adapter"


def run_sft(
    recipe: SftRecipe, out: Path, observer: Observer | None = None, *, is_resumed: bool = False
) -> dict[str, Any]:
    """Train on demonstrations and write ``out/policy``, a whole checkpoint in the base's own layout.

    The run directory holds recipe.yaml, environment.json, metrics.jsonl, checkpoints/ and summary.json beside it, and
    after LoRA ``adapter/``, which a training recipe takes as ``policy.adapter``. It is made when policy and
    demonstrations have been opened and the first batch has been read.

    Args:
        recipe: what to train on what.
        out: a run directory; new, unless the run is resumed.
        observer: hears of the progress.
        is_resumed: go on from the newest whole checkpoint in ``out``.

    Returns:
        The summary: ``loss`` and ``loss/<task>`` (means since the last logged step), ``num_steps``, ``wall_s``,
        ``seed``, ``policy``.

    Raises:
        UserError: if ``out`` already holds a run, or a resumed one has no checkpoint.
        FloatingPointError: if the gradient is not finite.
    """
    observer = observer or SilentObserver()
    start = time.perf_counter()
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    checkpoint = _find_start(out, is_resumed)
    observer.phase("loading the policy")
    training = _Training(recipe)
    first_step, means = 0, _Means({})
    if checkpoint is None:
        training.demonstrations_of(0)
        _make_run(recipe, out)
    else:
        first_step, means = checkpoint.step, _Means(checkpoint.state.get("unlogged", {}))
        load_training_state(training.policy.module, training.optimizer, out)
    observer.phase("training")
    metrics: dict[str, Any] = {}
    with MetricLog(out, resumed_step=first_step) as log, training.prefetching(first_step) as rows_of_steps:
        for step, rows in enumerate(rows_of_steps, start=first_step):
            means.add(training.step(step, rows))
            done = step + 1
            observer.progress(done, recipe.num_steps, "steps")
            if done % recipe.log_every == 0 or done == recipe.num_steps:
                metrics = {"step": done, **means.take()}
                log.append(metrics)
                observer.step(metrics)
            if recipe.checkpoint.every and done % recipe.checkpoint.every == 0 and done < recipe.num_steps:
                training.save(out, done, means.values)
    observer.phase("writing the policy")
    _write_policy(training.policy, out)
    summary = {
        **{key: value for key, value in metrics.items() if key.startswith("loss")},
        "num_steps": recipe.num_steps,
        "wall_s": round(time.perf_counter() - start, 1),
        "seed": recipe.seed,
        "policy": str(out / POLICY_FOLDER),
        "status": "finished",
    }
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    observer.done(summary)
    return summary


class _Training:
    """The policy, its optimiser and its demonstrations."""

    def __init__(self, recipe: SftRecipe) -> None:
        settings = recipe.policy
        self.recipe = recipe
        self.policy: Any = load_policy(
            settings.path,
            dtype=settings.dtype,
            device=settings.device,
            image_tokenizer=settings.image_tokenizer,
            image_size=settings.image_size,
            revision=settings.revision,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        refuse_untrained(self.policy, recipe.tasks)
        if self.policy.image_tokenizer is not None:
            self.policy.image_tokenizer = RememberedCodes(self.policy.image_tokenizer)
        if settings.adapter is not None:
            merge_adapter(self.policy, settings.adapter)
        if recipe.lora.enabled:
            add_lora(self.policy, recipe.lora, recipe.seed)
        for parameter in self.policy.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()  # loaded weights may be the mapped file
        self.optimizer = make_optimizer(recipe, self.policy.module)
        self.demonstrations = {
            task: Demonstrations(
                self.policy,
                task,
                task_settings,
                load_prompts(task_settings.data, task, "train", recipe.seed),
                seed=recipe.seed,
                caption_dropout=recipe.caption_dropout,
            )
            for task, task_settings in recipe.tasks.items()
        }

    def demonstrations_of(self, step: int) -> dict[Task, Rows]:
        """Return the rows of a step by task."""
        is_clean = step < self.recipe.clean_steps
        return {task: source.rows(step, is_clean=is_clean) for task, source in self.demonstrations.items()}

    @contextmanager
    def prefetching(self, first_step: int) -> Iterator[Iterator[dict[Task, Rows]]]:
        """Give the rows of every step in turn; a thread makes those of the next step while one is trained."""
        num_threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(num_threads)) as thread:

            def rows_of_steps() -> Iterator[dict[Task, Rows]]:
                following = thread.submit(self.demonstrations_of, first_step)
                for step in range(first_step, self.recipe.num_steps):
                    rows = following.result()
                    if step + 1 < self.recipe.num_steps:
                        following = thread.submit(self.demonstrations_of, step + 1)
                    yield rows

            yield rows_of_steps()

    def step(self, step: int, rows_by_task: dict[Task, Rows]) -> dict[str, float]:
        """Take one optimiser step over the rows of all tasks and return its metrics."""
        start = time.perf_counter()
        metrics: dict[str, float] = {}
        total = 0.0
        for task, rows in rows_by_task.items():
            is_complementary = self.recipe.tasks[task].masks == "complementary"
            loss = task_loss(self.policy, task, rows, self.recipe.min_mask_ratio, is_complementary=is_complementary)
            weighted = self.recipe.tasks[task].weight * loss
            weighted.backward()
            metrics[f"loss/{task}"] = loss.item()
            total += weighted.item()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        grad_norm = torch.nn.utils.clip_grad_norm_(trained, self.recipe.max_grad_norm).item()
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"the gradient of step {step + 1} is {grad_norm}; lower lr or raise warmup_steps")
        lr = learning_rate(self.recipe, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": total,
            **metrics,
            "grad_norm": grad_norm,
            "lr": lr,
            "timing_s/step": time.perf_counter() - start,
        }

    def save(self, out: Path, step: int, unlogged: dict[str, list[float]]) -> None:
        """Write a checkpoint to resume from, with the metrics that no logged mean holds yet."""
        save_checkpoint(
            out,
            step,
            {"seed": self.recipe.seed, "unlogged": unlogged},
            lambda folder: save_training_state(self.policy.module, self.optimizer, folder),
            self.recipe.checkpoint.keep,
        )


def task_loss(policy: Any, task: Task, rows: Rows, min_mask_ratio: float, *, is_complementary: bool = False) -> Tensor:
    """Return the loss of one task's rows, in nats; logits exist at the masked positions only.

    Text: the sum over masked tokens of cross-entropy / mask probability / answer length, averaged over rows (the
    reference's loss with answer lengths). Pictures: the mean over all masked codes. Complementary masks: the mean over
    the masked tokens of both halves, without weights (LaViDa's loss).
    """
    device = policy.device
    noisy = add_noise(rows, task=task, mask_token_id=policy.vocabulary.mask_token_id, min_mask_ratio=min_mask_ratio)
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
    if task == "imagine" or is_complementary:
        return -logprobs.mean()
    weights = text_weights(noisy.is_masked, noisy.mask_prob, rows.is_open.sum(dim=1))
    return -(weights.to(device) * logprobs).sum()


def learning_rate(recipe: SftRecipe, step: int) -> float:
    """Return the rate of a step: linear warm-up, then constant or half a cosine down to 0."""
    warmup = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    decay = 1.0
    if recipe.lr_schedule == "cosine":
        done = max(0, step - recipe.warmup_steps) / max(1, recipe.num_steps - recipe.warmup_steps)
        decay = 0.5 * (1.0 + math.cos(math.pi * done))
    return recipe.lr * warmup * decay


def make_optimizer(recipe: SftRecipe, module: torch.nn.Module) -> torch.optim.AdamW:
    """Return AdamW over the weights that train; vectors (norms) are not decayed."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas, fused=True)


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


def _find_start(out: Path, is_resumed: bool) -> Checkpoint | None:
    """Return the checkpoint to go on from; None is a new run, whose folder is free."""
    if is_resumed:
        checkpoint = latest_checkpoint(out)
        if checkpoint is None:
            raise UserError(f"{out} has no whole checkpoint to go on from; start the recipe anew in another folder")
        return checkpoint
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new folder for this run")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder for this run")
    return None


def _make_run(recipe: SftRecipe, out: Path) -> None:
    """Make the folder, once everything that can be wrong with the input has been opened."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / ENVIRONMENT, json.dumps(environment(), indent=1))
    dump_recipe(recipe, out / "recipe.yaml")


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
