"""Scored steps on disk: written before they are used, so that a resumed run sees the same rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from unigrpo.documents import parse_json
from unigrpo.errors import UserError
from unigrpo.files import json_text, write_atomically
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.runtime.step_log import RewardStats


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredStep:
    """All that a step's scoring leaves behind; table, keys and metrics are journalled."""

    table: RewardTable
    keys: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """Keys by reward, one a rollout, under which its value is kept (hexadecimal; None where it is not). With the table
    they are what later steps need not score again."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the metric log says of the scoring, apart from its values."""
    reasons: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reasons by reward, one a rollout, why it failed; empty where it did not."""
    stats: Mapping[str, RewardStats] = field(default_factory=dict)
    """How the step went for each reward."""


def save_step(path: Path | str, scored: ScoredStep) -> None:
    """Write a step as JSON; a reader never sees half of it."""
    path, table = Path(path), scored.table
    document = {
        "names": list(table.names),
        "weights": table.weights.tolist(),
        "ranges": [list(bounds) for bounds in table.ranges],
        "clips": [None if clip is None else list(clip) for clip in table.clips],
        "gates": [list(gates) for gates in table.gates],
        "pass_at": list(table.pass_at),
        "keys": {name: list(keys) for name, keys in scored.keys.items() if any(keys)},
        "metrics": dict(scored.metrics),
        "status": [[RewardStatus(code).name for code in row] for row in table.status.tolist()],
        "values": table.values.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json_text(document))


class _Document(BaseModel):
    """A saved step as it lies on disk, one entry a reward or a rollout."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)
    names: list[str]
    weights: list[float]
    ranges: list[list[float]]
    clips: list[list[float] | None]
    gates: list[list[int]]
    pass_at: list[float | None]
    keys: dict[str, list[str | None]]
    metrics: dict[str, float | None]
    status: list[list[str]]
    values: list[list[float | None]]

    @model_validator(mode="after")
    def _fits(self) -> _Document:
        num_rewards, num_rows = len(self.names), len(self.values)
        counts = {len(self.weights), len(self.ranges), len(set(self.names))}
        counts |= {len(row) for row in self.values} | {len(row) for row in self.status}
        # empty is none for any
        counts |= {len(self.clips or self.names), len(self.gates or self.names), len(self.pass_at or self.names)}
        if counts != {num_rewards}:
            raise ValueError(f"not every part has {num_rewards} rewards")
        if {len(self.status), *map(len, self.keys.values())} != {num_rows}:
            raise ValueError(f"not every part has {num_rows} rows")
        if any(pair is not None and len(pair) != 2 for pair in [*self.ranges, *self.clips]):
            raise ValueError("a range is not a lowest and a highest value")
        gates = {gate for gates in self.gates for gate in gates}
        strange = {name for row in self.status for name in row}.difference(RewardStatus.__members__)
        if strange:
            raise ValueError(f"no status {strange.pop()!r}")
        if not gates <= set(range(num_rewards)):
            raise ValueError("a gate that is no reward")
        return self


def load_step(path: Path | str) -> ScoredStep:
    """Return a saved step.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if the file is not a step's; it names the file.
    """
    try:
        document = _Document.model_validate(parse_json(Path(path).read_bytes()))
    except ValueError as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"{path} is not a reward table ({problem}); delete it to score that step again") from error
    shape = (len(document.values), len(document.names))
    status = [[RewardStatus[name] for name in row] for row in document.status]
    table = RewardTable(
        names=tuple(document.names),
        values=np.array(document.values, dtype=np.float64).reshape(shape),  # None becomes NaN
        status=np.array(status, dtype=np.int8).reshape(shape),
        weights=np.array(document.weights, dtype=np.float64),
        ranges=tuple((low, high) for low, high in document.ranges),
        clips=tuple(None if clip is None else (clip[0], clip[1]) for clip in document.clips),
        gates=tuple(map(tuple, document.gates)),
        pass_at=tuple(document.pass_at),
    )
    metrics = {name: math.nan if value is None else value for name, value in document.metrics.items()}
    return ScoredStep(table=table, keys=document.keys, metrics=metrics)
