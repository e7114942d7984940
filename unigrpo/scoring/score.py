"""Score saved completions with the runtime that trains: the same processes, deadlines and outcomes. Torch-free."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unigrpo.errors import UserError
from unigrpo.files import json_text, write_atomically
from unigrpo.reward_table import RewardStatus, disagreement
from unigrpo.rewards.runtime.journal import ScoredStep
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rewards.runtime.step_log import RewardStats
from unigrpo.runs.nan_statistics import number_or_none
from unigrpo.sanitized import sanitized
from unigrpo.scoring.items import PictureRefusedError, ScoreItem
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Rollout

BATCH_SIZE = 32
NUM_BENCH_PASSES = 5
UNREADABLE = "unreadable"
"""Status of every reward of an item whose picture was refused."""
_FAILURES = (RewardStatus.ERROR, RewardStatus.TIMEOUT, RewardStatus.INVALID)


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemScores:
    """The rewards of one item."""

    item: ScoreItem
    values: Mapping[str, float | None]
    """None where a reward does not apply or failed."""
    passed: Mapping[str, bool | None]
    """Whether it passes each reward; None where nothing counts."""
    status: Mapping[str, str]
    """ok, not_applicable, invalid, error, timeout or unreadable."""
    reward: float | None
    """Weighted mean of the rewards, each mapped from its range to [0, 1]; training adds ``optimized``."""
    optimized: float | None = None
    """The sum of value times weight, which is what training adds; it may order items otherwise than ``reward``."""
    refusal: str = ""
    """Why its picture was not scored."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By reward, why it failed; nothing of the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSummary:
    """One reward over all items."""

    name: str
    use: str
    weight: float
    range: tuple[float, float] | None
    """None where no item could be scored."""
    num_scored: int
    """Items with a value, those that timed out (the lowest value) included."""
    num_not_applicable: int
    failures: Mapping[str, int]
    """error, timeout, invalid, unreadable: how many of each that occurred."""
    mean: float | None
    std: float | None
    """Standard deviation of the population."""
    p5: float | None
    p95: float | None
    latency_p50_s: float | None
    """Seconds of a batch."""
    latency_p95_s: float | None
    items_per_s: float | None

    @property
    def has_failed(self) -> bool:
        """Return whether there is no item that it scored, or did not apply to."""
        num_timeouts = self.failures.get(RewardStatus.TIMEOUT.name.lower(), 0)
        return bool(self.failures) and self.num_scored == num_timeouts and not self.num_not_applicable


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """All that one scoring gave."""

    items: tuple[ItemScores, ...]
    rewards: tuple[RewardSummary, ...]
    seconds: float

    def extremes(self, name: str, count: int) -> tuple[list[ItemScores], list[ItemScores]]:
        """Return the worst and the best items of a reward, the most extreme first; no worst where all are alike."""
        valued = [(value, item) for item in self.items if (value := item.values[name]) is not None]
        ordered = [item for _, item in sorted(valued, key=lambda pair: pair[0])]
        if len({value for value, _ in valued}) < 2:
            return [], ordered[:count]
        num_each = min(count, len(ordered) // 2)
        return ordered[:num_each], ordered[: -num_each - 1 : -1]

    @property
    def order_note(self) -> str:
        """Return a sentence where the mapped reward and the sum that is optimised order items otherwise, else nothing.

        Items are compared within their task, to which the same rewards apply.
        """
        for task in dict.fromkeys(item.item.task for item in self.items):
            items = [item for item in self.items if item.item.task == task]
            pairs = [(item.optimized, item.reward) for item in items]
            optimized, mapped = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
            if (found := disagreement(optimized, mapped)) is not None:
                better, worse = items[found.better], items[found.worse]
                return (
                    f"the two orders disagree for {found.num_rows} of {len(items)} items: {better.item.source} has the "
                    f"larger sum of value times weight, which training optimises ({better.optimized:.4g} against "
                    f"{worse.optimized:.4g} of {worse.item.source}), and the smaller reward mapped to [0, 1] "
                    f"({better.reward:.3f} against {worse.reward:.3f}): the ranges of the rewards differ in width"
                )
        return ""

    def failed(self, name: str, count: int) -> list[ItemScores]:
        """Return the first items of which a reward failed with a reason, each reason once."""
        found: dict[str, ItemScores] = {}
        for item in self.items:
            if name in item.reasons and len(found) < count:
                found.setdefault(item.reasons[name], item)
        return list(found.values())


def score_items(
    settings: Mapping[str, RewardSettings],
    items: Sequence[ScoreItem],
    *,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> Scores:
    """Return every reward of every item; failures are counted, none stops the scoring.

    Args:
        settings: the rewards by name; their ``on_error`` is not used, because each item is to keep its own outcome.
        items: in order; a group's items go in one batch.
        batch_size: items that are scored together at least; latencies are of batches.
        on_progress: told how many items are done.

    Raises:
        UserError: if a reward needs token ids and the file has none.
        RewardContractError: if a reward does not return one value a completion.
        RewardOutageError: if a reward does not answer at all; not for one of weight 0 that gates nothing.
        RewardLoadError: if a reward could not be made.
    """
    start_s = time.perf_counter()
    masked = {name: reward.model_copy(update={"on_error": "mask"}) for name, reward in settings.items()}
    scored: list[ItemScores] = []
    batches: dict[str, list[RewardStats]] = {name: [] for name in settings}
    ranges: dict[str, tuple[float, float]] = {}
    with RewardPool(masked, max_failed_fraction=1.0) as pool:
        pool.wait_until_loaded()
        _check_token_ids(pool, items)
        for batch in _batches(items, batch_size):
            rollouts = [_rollout_or_refusal(item) for item in batch]
            readable = [rollout for rollout in rollouts if isinstance(rollout, Rollout)]
            step = pool.score(readable) if readable else None
            scored += _item_scores(tuple(settings), batch, rollouts, step)
            if step is not None:
                pool.remember(step)
                ranges = dict(zip(step.table.names, step.table.ranges, strict=True))
                for name, stats in step.stats.items():
                    batches[name] += [stats] if stats.num_items else []
            on_progress(len(scored))
    rewards = [_summary(name, reward, ranges.get(name), scored, batches[name]) for name, reward in settings.items()]
    return Scores(items=tuple(scored), rewards=tuple(rewards), seconds=time.perf_counter() - start_s)


def bench_rewards(
    settings: Mapping[str, RewardSettings],
    items: Sequence[ScoreItem],
    *,
    num_passes: int = NUM_BENCH_PASSES,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> dict[str, float]:
    """Return items a second by reward, each alone: the median pass, after one that warms up.

    Every pass sees other items, so that no cache answers. Pictures are read beforehand.

    Raises:
        UserError: if there are fewer items than passes, or too few can be read.
    """
    readable = [rollout for rollout in map(_rollout_or_refusal, items) if isinstance(rollout, Rollout)]
    each = len(readable) // (num_passes + 1)
    if not each:
        raise UserError(
            f"{len(readable)} items do not share out over {num_passes + 1} passes, each with items of its own; "
            f"give at least {num_passes + 1}"
        )
    rates: dict[str, float] = {}
    for num_done, (name, reward) in enumerate(settings.items(), start=1):
        alone: dict[str, Any] = {"on_error": "mask", "gate": [], "worker": None, "cache": "off", "cache_file": None}
        alone["weight"] = 1.0  # So that an outage is an error here, too, and no rate.
        with RewardPool({name: reward.model_copy(update=alone)}, max_failed_fraction=1.0) as pool:
            pool.wait_until_loaded()
            _check_token_ids(pool, items)
            rates_of_passes = []
            for number in range(num_passes + 1):
                start_s = time.perf_counter()
                pool.score(readable[number * each : (number + 1) * each])
                rates_of_passes.append(each / (time.perf_counter() - start_s))
        rates[name] = statistics.median(rates_of_passes[1:])
        on_progress(num_done)
    return rates


def write_scores(folder: Path, scores: Scores) -> None:
    """Write ``scores.jsonl``, one item a line in the order given, and ``summary.json``.

    A line has ``reasons`` where a reward failed, by its name, and ``refusal`` where a picture could not be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json_text(_record(scored), ensure_ascii=False) for scored in scores.items]
    write_atomically(folder / "scores.jsonl", "\n".join(lines) + "\n")
    summary = {
        "num_items": len(scores.items),
        "reward": _of(np.array([one.reward for one in scores.items if one.reward is not None]), np.mean),
        "optimized": _of(np.array([one.optimized for one in scores.items if one.optimized is not None]), np.mean),
        "order_note": scores.order_note,
        "seconds": scores.seconds,
        "rewards": {reward.name: asdict(reward) for reward in scores.rewards},
    }
    write_atomically(folder / "summary.json", json_text(summary, indent=1, ensure_ascii=False) + "\n")


def _record(scored: ItemScores) -> dict[str, Any]:
    item = scored.item
    record = {
        "source": item.source,
        "id": item.id,
        "sample_index": item.sample_index,
        "task": item.task,
        "reward": scored.reward,
        "optimized": scored.optimized,
        "rewards": dict(scored.values),
        "passed": dict(scored.passed),
        "status": dict(scored.status),
    }
    reasons = {"reasons": dict(scored.reasons)} if scored.reasons else {}
    return record | reasons | ({"refusal": scored.refusal} if scored.refusal else {})


def _check_token_ids(pool: RewardPool, items: Sequence[ScoreItem]) -> None:
    for name in pool.names_wanting_completion_ids:
        for item in items:
            if item.completion_ids is None:
                raise UserError(
                    f"{item.source}: the reward {name!r} counts tokens; give each line a column completion_ids, or "
                    "have it count words (length and repetition: `unit: words` in their arguments), or leave it out"
                )


def _batches(items: Sequence[ScoreItem], batch_size: int) -> Iterator[Sequence[ScoreItem]]:
    """Yield runs of at least ``batch_size`` items that end where a group ends; the last may be shorter."""
    start = 0
    for end in range(1, len(items) + 1):
        is_end_of_group = end == len(items) or items[end].sample_index == 0
        if end == len(items) or (is_end_of_group and end - start >= batch_size):
            yield items[start:end]
            start = end


def _rollout_or_refusal(item: ScoreItem) -> Rollout | str:
    """Return the rollout of an item, or why its picture was refused."""
    try:
        return item.rollout()
    except PictureRefusedError as error:
        return str(error)


def _item_scores(
    names: Sequence[str], batch: Sequence[ScoreItem], rollouts: Sequence[Rollout | str], step: ScoredStep | None
) -> Iterator[ItemScores]:
    row = 0
    for item, rollout in zip(batch, rollouts, strict=True):
        if isinstance(rollout, str) or step is None:
            nothing: dict[str, Any] = {"values": dict.fromkeys(names), "passed": dict.fromkeys(names), "reward": None}
            yield ItemScores(item=item, status=dict.fromkeys(names, UNREADABLE), refusal=str(rollout), **nothing)
            continue
        table = step.table
        status = [RewardStatus(code).name.lower() for code in table.status[row].tolist()]
        yield ItemScores(
            item=item,
            values=table.values_of(row),
            passed=table.passed_of(row),
            status=dict(zip(table.names, status, strict=True)),
            reward=number_or_none(table.unit_total[row]),
            optimized=number_or_none(table.total[row]),
            reasons={name: sanitized(reason[row]) for name, reason in step.reasons.items() if reason[row]},
        )
        row += 1


def _summary(
    name: str,
    reward: RewardSettings,
    range_: tuple[float, float] | None,
    scored: Sequence[ItemScores],
    batches: Sequence[RewardStats],
) -> RewardSummary:
    values = np.array([item.values[name] for item in scored if item.values[name] is not None], dtype=np.float64)
    status = [item.status[name] for item in scored]
    failures = {kind: status.count(kind) for kind in (*(s.name.lower() for s in _FAILURES), UNREADABLE)}
    seconds = np.array([batch.seconds for batch in batches])
    return RewardSummary(
        name=name,
        use=reward.use,
        weight=reward.weight,
        range=range_,
        num_scored=len(values),
        num_not_applicable=status.count(RewardStatus.NOT_APPLICABLE.name.lower()),
        failures={kind: count for kind, count in failures.items() if count},
        mean=_of(values, np.mean),
        std=_of(values, np.std),
        p5=_of(values, lambda v: np.percentile(v, 5)),
        p95=_of(values, lambda v: np.percentile(v, 95)),
        latency_p50_s=_of(seconds, lambda v: np.percentile(v, 50)),
        latency_p95_s=_of(seconds, lambda v: np.percentile(v, 95)),
        items_per_s=sum(batch.num_items for batch in batches) / float(seconds.sum()) if batches else None,
    )


def _of(values: np.ndarray, measure: Callable[[np.ndarray], Any]) -> float | None:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(measure(values)) if len(values) else None
