"""Work units: which rows are sampled together, and how one unit becomes rollouts.

Units are cut from the prompts alone, whole groups of one task at a time, before anything is dispatched; so the tokens
depend neither on how many actors there are nor on which of them died.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.errors import UserError
from unigrpo.rollouts.sampler import SampleOutput, sample
from unigrpo.seeding import fold
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Canvas, PolicyVersion, Prompt, Rollout, Rollouts, Span

if TYPE_CHECKING:
    from unigrpo.models.base import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkUnit:
    """Prompts of one task whose completions are sampled in one batch."""

    prompts: tuple[Prompt, ...]
    group_size: int
    sampling: SamplingSettings
    seeds: tuple[int, ...]
    """One a row: prompt by prompt, the samples of each together."""
    keeps_features: bool = False
    """Whether the features of its pictures stay with the rollouts, for the learner of this process."""


def plan_units(
    prompts: Sequence[tuple[Prompt, SamplingSettings]], *, group_size: int, rows_per_unit: int, seed: int, step: int
) -> list[WorkUnit]:
    """Cut prompts, in their order, into units of whole groups with the same sampling settings.

    Args:
        prompts: each with the sampling settings of its task.
        group_size: completions a prompt.
        rows_per_unit: most rows of a unit.
        seed: of the run.
        step: learner step; with the run's seed, the prompt's task and id, how often the prompt came before in this call
            and the sample's index it makes each row's seed.

    Raises:
        UserError: if a group does not fit into a unit.
    """
    groups_per_unit = rows_per_unit // group_size
    if groups_per_unit < 1:
        raise UserError(
            f"a group of {group_size} completions does not fit into rollouts.rows_per_unit={rows_per_unit}; "
            "raise rows_per_unit or lower group_size"
        )
    units: list[WorkUnit] = []
    waiting: list[Prompt] = []
    keys: list[int] = []
    num_seen: Counter[tuple[str, str]] = Counter()
    for index, (prompt, sampling) in enumerate(prompts):
        name = (prompt.task, prompt.id)
        waiting.append(prompt)
        keys.append(fold(seed, step, *name, num_seen[name]))
        num_seen[name] += 1
        is_last = index + 1 == len(prompts) or prompts[index + 1][1] != sampling
        if len(waiting) == groups_per_unit or is_last:
            seeds = tuple(fold(key, sample_index) for key in keys for sample_index in range(group_size))
            units.append(WorkUnit(prompts=tuple(waiting), group_size=group_size, sampling=sampling, seeds=seeds))
            waiting, keys = [], []
    return units


def generate(policy: Policy, unit: WorkUnit, version: PolicyVersion) -> Rollouts:
    """Return the unit's rollouts, prompt by prompt.

    Each prompt is encoded once (its pictures too) and shared by its group.
    """
    encoded = [policy.encode(prompt, unit.sampling) for prompt in unit.prompts]
    canvases = [canvas for canvas in encoded for _ in range(unit.group_size)]
    output = sample(policy, canvases, unit.sampling, unit.seeds)
    return Rollouts(
        items=tuple(_rollout(policy, unit, row, canvas, output, version) for row, canvas in enumerate(canvases)),
        group_ids=tuple(row // unit.group_size for row in range(len(canvases))),
        image_features=tuple(canvas.image_features for canvas in encoded) if unit.keeps_features else (),
    )


def joined(parts: Sequence[Rollouts], num_redispatched: int = 0) -> Rollouts:
    """Return the rollouts of several work units, in their order, their groups numbered anew."""
    keep_all = all(part.image_features for part in parts)  # else the features would stand beside other groups
    group_ids: list[int] = []
    for part in parts:
        start = group_ids[-1] + 1 if group_ids else 0
        group_ids += [start + group for group in part.group_ids]
    return Rollouts(
        items=tuple(rollout for part in parts for rollout in part),
        group_ids=tuple(group_ids),
        num_redispatched=num_redispatched,
        image_features=tuple(features for part in parts for features in part.image_features) if keep_all else (),
    )


def _rollout(
    policy: Policy, unit: WorkUnit, row: int, canvas: Canvas, output: SampleOutput, version: PolicyVersion
) -> Rollout:
    length = len(canvas.token_ids)
    token_ids = output.token_ids[row, :length].cpu().numpy()
    committed_step = output.committed_step[row, :length].cpu().numpy()
    is_completion = np.zeros(length, dtype=bool)
    texts, image, is_truncated = [], None, False
    for span in canvas.open_spans:
        is_completion[span.start : span.stop] = committed_step[span.start : span.stop] >= 0
        if span.kind == "image_codes":
            image = np.asarray(policy.decode_image(token_ids[span.start : span.stop], span))
            continue
        stop = _end_of_text(token_ids, span, policy.vocabulary.ends)
        is_completion[stop : span.stop] = False
        is_truncated |= stop == span.stop and token_ids[stop - 1] not in policy.vocabulary.ends
        texts.append(policy.decode_text(token_ids[span.start : stop]))
    return Rollout(
        prompt=unit.prompts[row // unit.group_size],
        sample_index=row % unit.group_size,
        token_ids=token_ids,
        spans=canvas.spans,
        is_completion=is_completion,
        committed_step=committed_step,
        committed_logprobs=output.committed_logprobs[row, :length].cpu().numpy(),
        text="".join(texts) if texts else None,
        image=image,
        seed=unit.seeds[row],
        policy_version=version,
        is_truncated=bool(is_truncated),
    )


def _end_of_text(token_ids: np.ndarray, span: Span, ends: tuple[int, ...]) -> int:
    """Return the position after the first of the ids that end a text, or the span's stop."""
    found = np.flatnonzero(np.isin(token_ids[span.start : span.stop], ends))
    return span.start + int(found[0]) + 1 if len(found) else span.stop
