"""Who is seen, and the attention over it, through the fused kernels that the device has.

A mask is as narrow as what it says: none where every key is seen, one row where all queries see the same, and for long
rows pieces of queries, each with the stretch of keys that it sees at all. So a prompt that sees only itself, or a
picture that sees everything, runs without a mask, and half of a causal square is never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor
from torch.nn import functional

QUERIES_A_PIECE = 512
"""Shorter rows stay whole: more calls would cost more than the keys that they leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Queries, and the keys that any of them sees."""

    queries: slice
    keys: tuple[slice, ...]
    is_visible: Tensor | None
    """Boolean, broadcast to [N, H, queries, keys]; None where each sees all of them."""


Visible = Tensor | tuple[Piece, ...] | None
"""What an attention layer takes: boolean, broadcast to [N, H, L, L'], or its pieces; None where every key is seen."""


def visible_keys(is_padding: Tensor | None) -> Tensor | None:
    """Return [N, 1, 1, L]: the keys that are seen; None where all are.

    A row that is padding from end to end sees itself: no softmax over nothing, hence no NaN.
    """
    if is_padding is None or not bool(is_padding.any()):
        return None
    return (~is_padding | is_padding.all(dim=1, keepdim=True))[:, None, None, :]


def mask_pieces(rows: Callable[[int, int], Tensor], bounds: Iterable[int]) -> Visible:
    """Return a mask in pieces; what is one piece over all keys comes whole.

    Args:
        rows: from a stretch of queries, start and stop, to [N or 1, queries, L'] bool: the keys that each sees.
        bounds: where pieces start and end, from 0 to L, in any order.
    """
    pieces, num_keys = [], 0
    for start, stop in pairwise(sorted(set(bounds))):
        is_seen = rows(start, stop)
        num_keys = is_seen.shape[2]
        keys = _stretches(is_seen.flatten(0, 1).any(dim=0).tolist())
        is_seen = torch.cat([is_seen[:, :, part] for part in keys], dim=2)
        pieces.append(Piece(queries=slice(start, stop), keys=keys, is_visible=_narrowest(is_seen)))
    if len(pieces) == 1 and pieces[0].keys == (slice(0, num_keys),):
        return pieces[0].is_visible
    return tuple(pieces)


def piece_bounds(start: int, stop: int) -> list[int]:
    """Return the bounds of pieces of at most `QUERIES_A_PIECE` queries."""
    return [*range(start, stop, QUERIES_A_PIECE), stop]


def _stretches(is_seen: list[bool]) -> tuple[slice, ...]:
    found, start = [], 0
    for is_wanted, run in groupby(is_seen):
        stop = start + len(list(run))
        if is_wanted:
            found.append(slice(start, stop))
        start = stop
    # Beyond two, the copies of keys would cost more than the gaps.
    return tuple(found) if len(found) <= 2 else (slice(found[0].start, found[-1].stop),)


def _narrowest(is_seen: Tensor) -> Tensor | None:
    if bool(is_seen.all()):
        return None
    if bool((is_seen == is_seen[:, :1]).all()):
        is_seen = is_seen[:, :1]
    return is_seen[:, None]


def positions_of(is_padding: Tensor) -> Tensor:
    """Return [N, L]: the positions of tokens among those of their row that are not padding; 0 before the first."""
    return ((~is_padding).long().cumsum(dim=1) - 1).clamp(min=0)


def attend(queries: Tensor, keys: Tensor, values: Tensor, is_visible: Visible) -> Tensor:
    """Return [N, H, L, W] of queries of that shape over keys and values [N, H', L', W] of as many or fewer heads.

    Args:
        queries: H heads.
        keys: H' heads, each for H / H' query heads.
        values: as the keys.
        is_visible: see `Visible`.
    """
    if not isinstance(is_visible, tuple):
        return _attend(queries, keys, values, is_visible)
    parts = [
        _attend(queries[:, :, piece.queries], _taken(keys, piece.keys), _taken(values, piece.keys), piece.is_visible)
        for piece in is_visible
    ]
    return torch.cat(parts, dim=2)


def _taken(heads: Tensor, stretches: tuple[slice, ...]) -> Tensor:
    parts = [heads[:, :, stretch] for stretch in stretches]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor | None) -> Tensor:
    num_groups = queries.shape[1] // keys.shape[1]
    is_grouped = num_groups > 1
    if is_grouped and is_visible is not None and queries.device.type == "cuda":
        # With a mask the grouped form has no fused kernel there, and would hold all scores at once.
        keys, values = (part.repeat_interleave(num_groups, dim=1) for part in (keys, values))
        is_grouped = False
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=is_visible, enable_gqa=is_grouped)
