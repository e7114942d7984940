"""Does an estimator keep its contract? `check_estimator` says so, for one of ours and for anybody's."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unigrpo.errors import ConformanceError
from unigrpo.types import Batch, MaskDraw

if TYPE_CHECKING:
    from unigrpo.methods.estimators.base import Estimator

ROWS, PROMPT, LENGTH, PADDING, MASK = 6, 3, 40, 5, 99
"""The checks' batch: rollouts, positions of the prompt, of a row and of padding; and the mask token."""
UPDATES = 3


def check_estimator(estimator: Estimator) -> None:
    """Check that a draw is a pure function, row by row, and scores nothing but noised completion tokens.

    Raises:
        ConformanceError: at the first promise that is broken, naming it.
    """
    batch = _batch()
    for update in range(UPDATES):
        states = _generators()
        draw = _drawn(estimator, batch, update)
        _require(_generators() == states, "a draw moves a global random generator; key it by the row seeds instead")
        _require(_same(draw, _drawn(estimator, batch, update)), "two draws of the same arguments differ")
        _check_places(batch, draw)
        _check_rows(estimator, batch, draw, update)


def _check_places(batch: Batch, draw: MaskDraw) -> None:
    """Check which positions are noised, scored and weighted."""
    rows = draw.rollout_index
    shape = (len(rows), batch.token_ids.shape[1])
    for name in ("noisy_ids", "is_scored", "weight"):
        found = tuple(getattr(draw, name).shape)
        _require(found == shape, f"{name} has shape {found}; wanted {shape}, [R, L] as rollout_index and the batch say")
    is_noised = draw.noisy_ids != batch.token_ids[rows]
    is_given = (batch.is_prompt | batch.is_padding)[rows]
    _require(not bool((is_noised & is_given).any()), "a prompt or padding position is noised")
    _require(not bool((draw.is_scored & ~batch.is_completion[rows]).any()), "a position off the completion is scored")
    _require(bool(torch.isfinite(draw.weight).all()), "a weight is not finite")
    _require(not bool((draw.weight[~draw.is_scored] != 0).any()), "a position that is not scored has a weight")


def _check_rows(estimator: Estimator, batch: Batch, draw: MaskDraw, update: int) -> None:
    """Check that a row's noise depends on neither its padding, nor its neighbors, nor its place in the batch."""
    padded = _drawn(estimator, _batch(PADDING), update)
    for name in ("noisy_ids", "is_scored", "weight"):
        equal = torch.equal(getattr(padded, name)[:, :LENGTH], getattr(draw, name))
        _require(equal, f"{name} changes with the padding of the batch")
    order = torch.arange(ROWS).flip(0)
    flipped = _drawn(estimator, _rows(batch, order), update)
    for row in range(ROWS):
        own = draw.noisy_ids[draw.rollout_index == row]
        moved = flipped.noisy_ids[flipped.rollout_index == ROWS - 1 - row]
        _require(torch.equal(moved, own), "a row's noise changes with its place in the batch")
        alone = _drawn(estimator, _rows(batch, torch.tensor([row])), update)
        _require(torch.equal(alone.noisy_ids, own), "a row's noise changes with its neighbors")


def _drawn(estimator: Estimator, batch: Batch, update: int) -> MaskDraw:
    return estimator.draw(batch, 1, update, UPDATES, MASK)


def _batch(padding: int = 0) -> Batch:
    """Return rows of a prompt, a completion that differs in length by row, and a tail."""
    shape = (ROWS, LENGTH + padding)
    place, row = torch.arange(shape[1])[None], torch.arange(ROWS)[:, None]
    is_padding = (place >= LENGTH).expand(shape)
    is_prompt = (place < PROMPT).expand(shape)
    is_completion = (place >= PROMPT) & (place < LENGTH - 3 * row) & ~is_padding
    return Batch(
        token_ids=(place + row) % 50,
        is_prompt=is_prompt,
        is_completion=is_completion,
        is_tail=~is_prompt & ~is_completion & ~is_padding,
        is_padding=is_padding,
        range_index=torch.zeros(shape, dtype=torch.int64),
        ranges=(None,),
        advantages=torch.linspace(-1, 1, ROWS, dtype=torch.float64),
        group_ids=torch.arange(ROWS) // 2,
        row_seeds=torch.arange(ROWS) + 100,
        lengths=torch.full((ROWS,), LENGTH),
        prompt_lengths=torch.full((ROWS,), PROMPT),
        committed_step=torch.where(is_prompt | is_padding, -1, place % 8).int(),
        committed_logprobs=torch.where(is_prompt | is_padding, 0.0, -1.0),
    )


def _rows(batch: Batch, rows: torch.Tensor) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    taken: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, torch.Tensor)}
    return replace(batch, **taken)


def _same(one: MaskDraw, other: MaskDraw) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _generators() -> tuple[object, ...]:
    _, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), rest, torch.get_rng_state().numpy().tobytes()


def _require(is_kept: bool, problem: str) -> None:
    if not is_kept:
        raise ConformanceError(problem)
