"""Samples as files: JSON lines with PNGs beside them, and the film strip of one picture's denoising."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unigrpo.data.jsonl import as_text
from unigrpo.files import json_text, write_atomically
from unigrpo.reward_table import RewardTable
from unigrpo.runs.nan_statistics import number_or_none
from unigrpo.types import Rollout, Span

UNKNOWN_GRAY = 160
SAVED_NAMES = (
    "optimized",
    "task",
    "id",
    "sample_index",
    "prompt",
    "prompt_image",
    "prompt_images",
    "completion",
    "answer",
    "image",
    "reward",
    "rewards",
    "passed",
    "num_tokens",
    "is_truncated",
    "seed",
)
"""What a line says of its rollout; the data's columns stand beside it under their own names."""
DATA_COLUMNS = "columns"
"""Where the data's columns stand that have one of the names above, or this one."""


def write_samples(path: Path, scored: Iterable[tuple[Rollout, RewardTable, int]]) -> None:
    """Write rollouts as JSON lines, and their pictures as PNG files beside them.

    Columns of the data that JSON cannot hold, such as arrays, are left out. The JSONL file's name without its suffix
    starts the names of the pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    names: dict[bytes, str] = {}
    for number, (rollout, table, row) in enumerate(scored):
        stem = f"{path.stem}_{number:03d}"
        shown = [_saved(path.parent, stem, place, one, names) for place, one in enumerate(rollout.prompt.images)]
        record = _record(path.parent, stem, rollout, table, row)
        record["prompt_image"] = shown[0] if shown else None
        if len(shown) > 1:
            record["prompt_images"] = shown
        lines.append(json_text(record, ensure_ascii=False))
    write_atomically(path, "\n".join(lines) + "\n")


def _saved(folder: Path, stem: str, place: int, picture: Image.Image, names: dict[bytes, str]) -> str:
    """Return the file of a prompt's picture, which is written where ``names`` has none of its content."""
    content = hashlib.blake2b(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).digest()
    if content not in names:
        names[content] = f"{stem}_prompt{place or ''}.png"
        picture.save(folder / names[content])
    return names[content]


def _record(folder: Path, stem: str, rollout: Rollout, table: RewardTable, row: int) -> dict[str, Any]:
    if rollout.image is not None:
        Image.fromarray(rollout.image).save(folder / f"{stem}.png")
    columns = {name: value for name, value in rollout.prompt.columns.items() if _is_json(value)}
    apart = {name: columns.pop(name) for name in (*SAVED_NAMES, DATA_COLUMNS) if name in columns}
    own = {
        "task": rollout.prompt.task,
        "id": rollout.prompt.id,
        "sample_index": rollout.sample_index,
        "prompt": rollout.prompt.text,
        "completion": rollout.text,
        "answer": rollout.prompt.answer if _is_json(rollout.prompt.answer) else as_text(rollout.prompt.answer),
        "image": None if rollout.image is None else f"{stem}.png",
        "reward": number_or_none(table.unit_total[row]),
        "optimized": number_or_none(table.total[row]),
        "rewards": table.values_of(row),
        "passed": table.passed_of(row),
        "num_tokens": rollout.completion_length,
        "is_truncated": rollout.is_truncated,
        "seed": rollout.seed,
    }
    return columns | own | ({DATA_COLUMNS: apart} if apart else {})


def _is_json(value: Any) -> bool:
    """Return whether a column of the data can stand in the file, so that the rewards can be given it again."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def write_film(folder: Path, decode_image: Callable[[np.ndarray, Span], Image.Image], rollout: Rollout) -> None:
    """Write one frame a denoising step of a picture, cells that are still masked in grey.

    The frames are made from the step at which each code was committed, so nothing is sampled again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    span = next(span for span in rollout.spans if span.kind == "image_codes")
    codes, steps = rollout.token_ids[span.start : span.stop], rollout.committed_step[span.start : span.stop]
    first = int(span.vocabulary_range[0]) if span.vocabulary_range else 0
    side = round(len(codes) ** 0.5)
    frames = []
    for step in range(int(steps.max()) + 1):
        is_known = steps <= step
        pixels = np.array(decode_image(np.where(is_known, codes, first), span))
        cell = pixels.shape[0] // side
        is_gray = np.kron(~is_known.reshape(side, side), np.ones((cell, cell), dtype=bool))
        pixels[is_gray] = UNKNOWN_GRAY
        frames.append(f"{step:02d}.png")
        Image.fromarray(pixels).save(folder / frames[-1])
    texts = [f"step {step + 1}" for step in range(len(frames))]
    film = {"prompt": rollout.prompt.text, "frames": frames, "texts": texts}
    write_atomically(folder / "film.json", json_text(film, indent=1))
