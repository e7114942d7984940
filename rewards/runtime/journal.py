"""Scored steps on disk: written before they are used, so that a resumed run sees the same rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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


def load_step(path: Path | str) -> ScoredStep:
    """Return a saved step.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not a step's; it names the file.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        table = _table_of(document)
        metrics = {name: math.nan if value is None else value for name, value in document.get("metrics", {}).items()}
        return ScoredStep(table=table, keys=document.get("keys", {}), metrics=metrics)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a reward table ({error}); delete it to score that step again") from error


def _table_of(document: dict[str, Any]) -> RewardTable:
    names = tuple(document["names"])
    shape = (len(document["values"]), len(names))
    values = np.array([[np.nan if v is None else v for v in row] for row in document["values"]], dtype=np.float64)
    status = np.array([[RewardStatus[name] for name in row] for row in document["status"]], dtype=np.int8)
    return RewardTable(
        names=names,
        values=values.reshape(shape),
        status=status.reshape(shape),
        weights=np.array(document["weights"], dtype=np.float64),
        ranges=tuple((float(low), float(high)) for low, high in document["ranges"]),
        clips=tuple(None if clip is None else (float(clip[0]), float(clip[1])) for clip in document.get("clips", ())),
        gates=tuple(tuple(int(gate) for gate in gates) for gates in document.get("gates", ())),
        pass_at=tuple(None if value is None else float(value) for value in document.get("pass_at", ())),
    )
