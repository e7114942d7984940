"""Masks in pieces against the whole mask, and how narrow they come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unigrpo.models.layers import attention
from unigrpo.models.layers.attention import attend, mask_pieces, piece_bounds, visible_keys
from unigrpo.models.layers.block_cache import block_rows, doubled_rows
from unigrpo.models.policies.lavida import prefix_rows

LENGTH, BLOCK = 20, 4
IS_PADDING = torch.zeros(3, LENGTH, dtype=torch.bool)
IS_PADDING[1, :3], IS_PADDING[2, 15:] = True, True
POSITIONS = ((~IS_PADDING).long().cumsum(1) - 1).clamp(min=0)
EVERY = torch.arange(LENGTH)[None]
DOUBLED = {"positions": POSITIONS.repeat(1, 2), "is_padding": IS_PADDING.repeat(1, 2)}

MASKS: dict[str, tuple[Callable[[int, int], Tensor], int]] = {
    "block-causal": (lambda a, b: block_rows(EVERY, BLOCK, None, a, b), LENGTH),
    "block-causal, padded": (lambda a, b: block_rows(POSITIONS, BLOCK, IS_PADDING, a, b), LENGTH),
    "noisy and clean": (lambda a, b: doubled_rows(EVERY.repeat(1, 2), BLOCK, None, a, b), 2 * LENGTH),
    "noisy and clean, padded": (
        lambda a, b: doubled_rows(DOUBLED["positions"], BLOCK, DOUBLED["is_padding"], a, b),
        2 * LENGTH,
    ),
    "prefix": (lambda a, b: prefix_rows(torch.tensor([6, 6, 6]), LENGTH, None, a, b), LENGTH),
    "prefix, ragged": (
        lambda a, b: prefix_rows(torch.tensor([5, 9, 6]), LENGTH, visible_keys(IS_PADDING), a, b),
        LENGTH,
    ),
}


def whole(rows: Callable[[int, int], Tensor], length: int) -> Tensor:
    """One query at a time."""
    return torch.cat([rows(query, query + 1) for query in range(length)], dim=1)[:, None]


def heads(num_heads: int, length: int, seed: int) -> Tensor:
    return torch.randn(3, num_heads, length, 8, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("name", MASKS)
def test_pieces_give_the_result_and_the_gradients_of_the_whole_mask(name: str, size: int) -> None:
    rows, length = MASKS[name]
    bounds = [*range(0, length, size), length, LENGTH]
    found = []
    for is_visible in (mask_pieces(rows, bounds), whole(rows, length)):
        parts = heads(4, length, 0), heads(2, length, 1), heads(2, length, 2)
        mixed = attend(*parts, is_visible)
        found.append((mixed, *torch.autograd.grad((mixed * heads(4, length, 3)).sum(), parts)))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_noise_is_seen_in_its_own_block_alone_by_hand() -> None:
    """Two blocks of two: noisy 0..3, clean 4..7."""
    rows = doubled_rows(torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), 2, None, 0, 4)[0].int().tolist()
    assert rows == [[1, 1, 0, 0, 0, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1, 1, 0, 0]] * 2
    rows = doubled_rows(torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), 2, None, 4, 8)[0].int().tolist()
    assert rows == [[0, 0, 0, 0, 1, 1, 0, 0]] * 2 + [[0, 0, 0, 0, 1, 1, 1, 1]] * 2


def test_a_mask_is_none_one_row_or_the_keys_that_are_seen() -> None:
    assert mask_pieces(lambda a, b: torch.ones(3, b - a, LENGTH, dtype=torch.bool), [0, LENGTH]) is None
    keys = ~IS_PADDING[:, None]
    assert mask_pieces(lambda a, b: keys.expand(3, b - a, LENGTH), [0, LENGTH]).shape == (3, 1, 1, LENGTH)
    prompt, answer = mask_pieces(MASKS["prefix"][0], (0, 6, LENGTH))
    assert (prompt.keys, prompt.is_visible) == ((slice(0, 6),), None)
    assert (answer.keys, answer.is_visible) == ((slice(0, LENGTH),), None)
    pieces = mask_pieces(MASKS["noisy and clean"][0], [0, 8, 20, 28, 40])
    assert [piece.keys for piece in pieces] == [
        (slice(0, 8), slice(20, 24)),
        (slice(8, 36),),
        (slice(20, 28),),
        (slice(20, 40),),
    ]
    assert all(piece.is_visible.shape[0] == 1 for piece in pieces), "the same for all rows"


def test_half_of_a_long_causal_square_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_A_PIECE", 8)
    positions = torch.arange(64).repeat(2)[None]
    bounds = [*piece_bounds(0, 64), *piece_bounds(64, 128)]
    pieces = mask_pieces(lambda a, b: doubled_rows(positions, 4, None, a, b), bounds)
    computed = sum(
        (piece.queries.stop - piece.queries.start) * sum(part.stop - part.start for part in piece.keys)
        for piece in pieces
    )
    assert computed < 0.35 * 128 * 128
