"""The scalars of one learner step, under the names that trainers share."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from unigrpo.learner.learner import UpdateStats
from unigrpo.methods.groups import Advantages, spread_fractions
from unigrpo.reward_table import RewardStatus, RewardTable, disagreement
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

    ``reward`` and ``tasks/<task>/optimized`` are what training adds: the sum of value times weight. The other view,
    ``tasks/<task>/reward`` and ``reward/<name>/mapped``, maps each reward from its range to [0, 1];
    ``tasks/<task>/misordered_fraction`` is the part of the completions that the two views order otherwise.
    ``reward/<name>/spread_fraction`` is the part of the groups in which an optimised reward differs, so that something
    can be learnt from it; ``advantages/abs_mean`` is 0 where nothing can.

    ``clip_ratio/region_mean`` is the part of the scored tokens, by weight, that the objective's clip cut off;
    ``num_bounded`` counts the tokens more than 3 nats from the old policy or the reference, whose ratio and penalty are
    bounded; ``clamped_fraction`` is the part more than 20 nats off, which is not moved by that term. It is 0 in a run
    that is well. Loss and gradient are means over the updates that were not skipped.
    """
    timing, version = timer.metrics(), rollouts[0].policy_version
    num_tokens = sum(rollout.completion_length for rollout in rollouts)
    metrics: dict[str, Any] = {"step": run.num_done}
    metrics |= _reward_metrics(rollouts, scored.table) | scored.metrics
    spreads = spread_fractions(scored.table, rollouts.groups, run.recipe.advantages.std_floor)
    metrics |= {f"reward/{name}/spread_fraction": fraction for name, fraction in spreads.items()}
    metrics |= _update_metrics(updates)
    metrics |= {
        "frac_reward_zero_std": advantages.frac_reward_zero_std,
        "advantages/abs_mean": float(np.abs(advantages.values).mean()),
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
        metrics[f"tasks/{task}/optimized"] = nan_mean(total[tasks == task])
        wrong = disagreement(total[tasks == task], unit[tasks == task])
        metrics[f"tasks/{task}/misordered_fraction"] = wrong.num_rows / int((tasks == task).sum()) if wrong else 0.0
    for column, name in enumerate(table.names):
        values = table.values[:, column]
        if not np.isnan(values).all():
            metrics |= {f"rewards/{name}/mean": nan_mean(values), f"rewards/{name}/std": nan_std(values)}
            metrics[f"reward/{name}/mapped"] = nan_mean(table.mapped[:, column])
        status = table.status[:, column]
        num_asked = max(1, int((status != RewardStatus.NOT_APPLICABLE).sum()))
        num_failed = int(np.isin(status, (RewardStatus.ERROR, RewardStatus.INVALID)).sum())
        metrics[f"reward/{name}/error_rate"] = num_failed / num_asked
        metrics[f"reward/{name}/too_large_rate"] = int(table.is_too_large[:, column].sum()) / num_asked
        metrics[f"reward/{name}/timeout_rate"] = int((status == RewardStatus.TIMEOUT).sum()) / num_asked
    return metrics


def _update_metrics(updates: Sequence[UpdateStats]) -> dict[str, Any]:
    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    skipped = [update for update in updates if update.is_skipped]
    updates, num_updates = [update for update in updates if not update.is_skipped] or skipped, len(updates)
    causes = {"skipped_updates/cause": skipped[-1].skipped_because} if skipped else {}
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
        "num_bounded": sum(int(update.sums.num_bounded) for update in updates),
        "num_updates": num_updates,
        "num_skipped_updates": len(skipped),
        **causes,
    }
