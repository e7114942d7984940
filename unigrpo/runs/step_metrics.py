"""The scalars of one learner step, under the names that trainers share."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from unigrpo.learner.learner import UpdateStats
from unigrpo.methods.groups import Advantages
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.runtime.journal import ScoredStep
from unigrpo.runs.alarms import completion_metrics
from unigrpo.runs.metrics import StepTimer
from unigrpo.runs.nan_statistics import nan_mean, nan_std
from unigrpo.runs.run import Run
from unigrpo.types import Rollouts

KIBIBYTES_PER_GB = 1024**2
BYTES_PER_GB = 1024**3


def step_metrics(
    run: Run,
    rollouts: Rollouts,
    scored: ScoredStep,
    advantages: Advantages,
    updates: Sequence[UpdateStats],
    timer: StepTimer,
) -> dict[str, Any]:
    """Return what ``metrics.jsonl`` holds of a step.

    ``clip_ratio/region_mean`` is the part of the scored tokens, by weight, that the objective's clip cut off;
    ``clamped_fraction`` is the part whose log-prob lies more than 20 nats from the old policy's or the reference's, and
    which is not moved by that term. It is 0 in a run that is well.
    """
    timing, version = timer.metrics(), rollouts[0].policy_version
    num_tokens = sum(rollout.completion_length for rollout in rollouts)
    metrics: dict[str, Any] = {"step": run.num_done}
    metrics |= _reward_metrics(rollouts, scored.table) | scored.metrics
    metrics |= _update_metrics(updates)
    metrics |= {
        "frac_reward_zero_std": advantages.frac_reward_zero_std,
        "completions/mean_length": num_tokens / len(rollouts),
        "completions/truncated_fraction": float(np.mean([rollout.is_truncated for rollout in rollouts])),
        "num_redispatched": rollouts.num_redispatched,
        "policy/version": version.sha256[:12] or f"step_{version.step}",
        "perf/tokens_per_s": num_tokens / max(timing["timing_s/rollout"], 1e-9),
        "memory/peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIBIBYTES_PER_GB,
    }
    if torch.cuda.is_available():
        metrics["memory/gpu_peak_gb"] = torch.cuda.max_memory_allocated() / BYTES_PER_GB
    metrics |= completion_metrics(rollouts, scored.table)
    return metrics | run.alarms.observe(metrics) | timing


def _reward_metrics(rollouts: Rollouts, table: RewardTable) -> dict[str, float]:
    total, unit = table.total, table.unit_total
    spreads = [nan_std(total[rows]) for rows in rollouts.groups]
    metrics = {"reward": nan_mean(total), "reward_std": nan_mean(np.array(spreads))}
    tasks = np.array([rollout.prompt.task for rollout in rollouts])
    for task in dict.fromkeys(tasks.tolist()):
        metrics[f"tasks/{task}/reward"] = nan_mean(unit[tasks == task])
        metrics[f"tasks/{task}/reward_std"] = nan_std(unit[tasks == task])
    for column, name in enumerate(table.names):
        values = table.values[:, column]
        if not np.isnan(values).all():
            metrics |= {f"rewards/{name}/mean": nan_mean(values), f"rewards/{name}/std": nan_std(values)}
        status = table.status[:, column]
        num_asked = max(1, int((status != RewardStatus.NOT_APPLICABLE).sum()))
        num_failed = int(np.isin(status, (RewardStatus.ERROR, RewardStatus.INVALID)).sum())
        metrics[f"reward/{name}/error_rate"] = num_failed / num_asked
        metrics[f"reward/{name}/timeout_rate"] = int((status == RewardStatus.TIMEOUT).sum()) / num_asked
    return metrics


def _update_metrics(updates: Sequence[UpdateStats]) -> dict[str, float]:
    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return {
        "loss": mean(float(update.sums.loss) for update in updates),
        "kl": mean(update.sums.mean("kl") for update in updates),
        "ratio_mean": mean(update.sums.mean("ratio") for update in updates),
        "clip_ratio/region_mean": mean(update.sums.mean("cut") for update in updates),
        "clamped_fraction": mean(update.sums.mean("clamped") for update in updates),
        "entropy": mean(update.sums.mean("nll") for update in updates),
        "grad_norm": mean(update.grad_norm for update in updates),
        "lr": updates[-1].lr,
        "mask_ratio": mean(update.mask_ratio for update in updates),
        "num_scored": sum(update.num_scored for update in updates),
        "num_empty": sum(update.num_empty for update in updates),
        "num_skipped_updates": sum(update.is_skipped for update in updates),
    }
