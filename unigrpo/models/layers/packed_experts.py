"""Frozen experts side by side in memory, so that a mixture is three matrix products however many experts there are.

On a GPU hundreds of small products, one after another, leave it idle. Packed experts keep their names, shapes and
values: each weight becomes a view of one tensor that holds the weights of all experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unigrpo.models.layers.swiglu import SWIGLU_LINEARS

MIN_ALIGNMENT = 16
"""Bytes of which a row must be a multiple for the grouped kernel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedExperts:
    """The weights of E experts: gate and up [E, I, D], down [E, D, I]."""

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor

    @classmethod
    def of(cls, experts: nn.ModuleList) -> PackedExperts | None:
        """Move the experts' weights into common tensors, one projection at a time; None where they cannot be packed.

        Args:
            experts: E modules of `unigrpo.models.layers.swiglu.SwiGlu`, of one shape.
        """
        linears = {name: [getattr(expert, name) for expert in experts] for name in SWIGLU_LINEARS}
        if not all(type(linear) is nn.Linear for row in linears.values() for linear in row):
            return None
        if any(row[0].weight.shape[1] * row[0].weight.element_size() % MIN_ALIGNMENT for row in linears.values()):
            return None
        return cls(**{name: _packed(row) for name, row in linears.items()})

    def holds(self, experts: nn.ModuleList) -> bool:
        """Return whether the experts still are these weights, each of them, and nothing is wrapped around one."""
        for name in SWIGLU_LINEARS:
            together: Tensor = getattr(self, name)
            address, step = together.data_ptr(), together.stride(0) * together.element_size()
            for expert in experts:
                linear: Any = getattr(expert, name)
                if type(linear) is not nn.Linear or linear.weight.data_ptr() != address:
                    return False
                address += step
        return True

    def mix(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum [T, D] over the chosen experts of each token, in order of the experts' numbers.

        ``chosen`` are [T, K] int64, ``weights`` [T, K] float32, rounded to the dtype of ``hidden`` [T, D].
        """
        chosen, by_number = chosen.sort(dim=-1)
        weights = weights.gather(-1, by_number).to(hidden.dtype)
        order = chosen.flatten().argsort(stable=True)
        numbers = torch.arange(len(self.gate_proj), device=hidden.device)
        stops = torch.searchsorted(chosen.flatten()[order], numbers, right=True).to(torch.int32)
        rows = hidden.index_select(0, order // chosen.shape[1])
        gate, up = (
            functional.grouped_mm(rows, part.transpose(1, 2), offs=stops) for part in (self.gate_proj, self.up_proj)
        )
        made = functional.grouped_mm(functional.silu(gate) * up, self.down_proj.transpose(1, 2), offs=stops)
        # Back to the tokens by a gather: adding rows where they belong has no fixed order on a GPU.
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return (made.index_select(0, place).view(*chosen.shape, -1) * weights[..., None]).sum(dim=1)


def _packed(linears: list[nn.Linear]) -> Tensor:
    together = torch.stack([linear.weight.detach() for linear in linears])
    for linear, weight in zip(linears, together, strict=True):
        linear.weight.data = weight
    return together


def pack_experts(module: nn.Module) -> int:
    """Pack every mixture of a body whose weights are on a GPU in bfloat16, what the grouped kernel is for.

    Returns:
        How many were packed.
    """
    num_packed = 0
    for part in module.modules():
        pack = getattr(part, "pack", None)
        weight = next(part.parameters(), None)
        if pack is not None and weight is not None and weight.is_cuda and weight.dtype == torch.bfloat16:
            num_packed += pack()
    return num_packed
