"""Reward tables on disk: written before they are used, so that a resumed run sees the same rewards."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from unigrpo.types import RewardStatus, RewardTable


def save_table(path: Path | str, table: RewardTable) -> None:
    """Write a table as JSON: to a temporary name, synced, then renamed, so that a reader never sees half of it."""
    path = Path(path)
    document = {
        "names": list(table.names),
        "weights": table.weights.tolist(),
        "ranges": [list(bounds) for bounds in table.ranges],
        "status": [[RewardStatus(code).name for code in row] for row in table.status.tolist()],
        "values": [[value if math.isfinite(value) else None for value in row] for row in table.values.tolist()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # The rename itself must survive a power cut.
    finally:
        os.close(folder)


def load_table(path: Path | str) -> RewardTable:
    """Return a saved table.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not a table; it names the file.
    """
    try:
        return _table_of(json.loads(Path(path).read_text(encoding="utf-8")))
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
    )
