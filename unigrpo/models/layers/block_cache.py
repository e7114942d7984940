"""Keys and values of finished blocks, one slot a position, and who sees whom under block-causal attention."""

from __future__ import annotations

import torch
from torch import Tensor


def sees_block(queries: Tensor, keys: Tensor, block_length: int) -> Tensor:
    """Return [N, Q, K] bool: whether a key lies in the query's block or an earlier one.

    ``queries`` are positions [N, Q], ``keys`` [N, K] or [K]; the grid starts at position 0.
    """
    keys = keys if keys.dim() == 2 else keys[None]
    return keys[:, None, :] // block_length <= queries[:, :, None] // block_length


def block_rows(positions: Tensor, block_length: int, is_padding: Tensor | None, start: int, stop: int) -> Tensor:
    """Return [N, queries, L] bool: the keys that some queries see, those of their block and of earlier ones.

    Args:
        positions: [N, L].
        block_length: of the grid.
        is_padding: [N, L] keys that nobody sees, but each itself: a query without any key would be NaN.
        start: first query.
        stop: past the last.
    """
    return _without(is_padding, sees_block(positions[:, start:stop], positions, block_length), start)


def doubled_rows(positions: Tensor, block_length: int, is_padding: Tensor | None, start: int, stop: int) -> Tensor:
    """Return [N, queries, 2 L] bool for rows [noisy ; clean]; the queries are all noisy or all clean.

    A noisy query sees the noisy tokens of its block and the clean ones of earlier blocks; a clean one sees no noise.
    ``positions`` are [N, 2 L], the same twice, ``is_padding`` [N, 2 L] as in `block_rows`; queries are start .. stop.
    """
    length = positions.shape[1] // 2
    block_of = positions // block_length
    own, blocks = block_of[:, start:stop, None], block_of[:, None, :length]
    is_noisy = stop <= length
    noisy = blocks == own if is_noisy else torch.zeros_like(blocks == own)
    clean = blocks < own if is_noisy else blocks <= own
    return _without(is_padding, torch.cat((noisy, clean), dim=2), start)


def _without(is_padding: Tensor | None, is_seen: Tensor, start: int) -> Tensor:
    if is_padding is None:
        return is_seen
    stop = start + is_seen.shape[1]
    itself = torch.zeros_like(is_seen[:1])
    itself[0, :, start:stop].fill_diagonal_(True)
    return is_seen & ~is_padding[:, None, :] | itself & is_padding[:, start:stop, None]


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
    """The part of a cache that one pass works on (`unigrpo.models.layers.decoder.KeyValues`)."""

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
