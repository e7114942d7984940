"""Batches of one size: so a model's value of an item does not depend on how many others are asked with it.

Matrix products of other shapes are summed in another order and differ in the last bits. What is asked together depends
on what is remembered, which a restarted worker does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CPU_BATCH_SIZE = 8
CUDA_BATCH_SIZE = 64


def batch_size_on(device: str) -> int:
    """Return how many items go together: on a CPU few, as those that only fill a batch cost as much as others."""
    return CPU_BATCH_SIZE if device == "cpu" else CUDA_BATCH_SIZE


def in_whole_batches(inputs: Sequence[Tensor], size: int, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Return [N, ...] float64 on the CPU of N like inputs; the last batch is filled up with its own first input."""
    import torch

    made = []
    with torch.no_grad():
        for start in range(0, len(inputs), size):
            batch = list(inputs[start : start + size])
            whole = torch.stack(batch + batch[:1] * (size - len(batch)))
            made.append(forward(whole)[: len(batch)].double().cpu())
    return torch.cat(made)
