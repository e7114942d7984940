"""Keys and values of finished blocks, one slot a position, and who sees whom under block-causal attention."""

from __future__ import annotations

import torch
from torch import Tensor


def sees_block(queries: Tensor, keys: Tensor, block_length: int) -> Tensor:
    """Return [N, Q, K] bool: whether a key lies in the query's block or an earlier one.

    Args:
        queries: [N, Q] positions.
        keys: [N, K] or [K] positions.
        block_length: of the grid, which starts at position 0.
    """
    keys = keys if keys.dim() == 2 else keys[None]
    return keys[:, None, :] // block_length <= queries[:, :, None] // block_length


def in_same_block(queries: Tensor, keys: Tensor, block_length: int) -> Tensor:
    """Return [N, Q, K] bool: whether a key lies in the query's block; positions are [N, Q] and [N, K]."""
    return keys[:, None, :] // block_length == queries[:, :, None] // block_length


def narrowed(is_visible: Tensor) -> Tensor | None:
    """Return [N, 1, Q, K] for the attention, or None where everything is seen, so that a faster kernel may run."""
    return None if bool(is_visible.all()) else is_visible[:, None]


class BlockCache:
    """Keys and values of some rows; the first pass sets their number, widths and dtype.

    Args:
        capacity: positions a row; slots beyond it take what nobody will see.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def is_empty(self) -> bool:
        """Return whether nothing has been kept yet."""
        return not self._keys

    def select(self, rows: Tensor) -> None:
        """Keep the given rows [n], in their order; a row may come several times."""
        for store in (self._keys, self._values):
            for layer in store:
                store[layer] = store[layer].index_select(0, rows)

    def window(self, slots: Tensor, num_keys: int, rows: Tensor | None) -> CacheWindow:
        """Return what a pass writes to and reads from.

        Args:
            slots: [n, C], where the keys of the pass belong; the capacity is the slot of padding.
            num_keys: how many slots the pass sees at most.
            rows: [n] rows of the cache; None is all.
        """
        return CacheWindow(self, slots, num_keys, rows)

    def put(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor, first: int | None, rows: Tensor) -> None:
        """Write [n, H, C, W] keys and values of a layer; ``first`` is the first slot where all rows agree."""
        for store, new in ((self._keys, keys), (self._values, values)):
            if layer not in store:
                # Zeros: a masked slot is multiplied by 0, which a NaN of fresh memory would survive.
                store[layer] = new.new_zeros(len(new), new.shape[1], self.capacity + 1, new.shape[3])
            if first is not None:
                store[layer][:, :, first : first + new.shape[2]] = new
            else:
                store[layer][rows[:, None], :, slots] = new.transpose(1, 2)

    def get(self, layer: int, num_keys: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return [n, H, num_keys, W] keys and values of a layer."""
        keys, values = self._keys[layer][:, :, :num_keys], self._values[layer][:, :, :num_keys]
        return (keys, values) if rows is None else (keys.index_select(0, rows), values.index_select(0, rows))


class CacheWindow:
    """The part of a cache that one pass works on (`unigrpo.models.decoder.KeyValues`)."""

    def __init__(self, cache: BlockCache, slots: Tensor, num_keys: int, rows: Tensor | None) -> None:
        """See `BlockCache.window`."""
        self._cache, self._slots, self._num_keys, self._rows = cache, slots, num_keys, rows
        self._all_rows = torch.arange(len(slots), device=slots.device) if rows is None else rows
        run = slots[0, 0] + torch.arange(slots.shape[1], device=slots.device)
        is_even = rows is None and bool((slots == run).all())
        self._first = int(slots[0, 0]) if is_even else None

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [n, H, C, W] keys and values; return those of every slot that the pass sees."""
        self._cache.put(layer, keys, values, self._slots, self._first, self._all_rows)
        return self._cache.get(layer, self._num_keys, self._rows)
