"""The gated MLP of the Llama line, under the names that its checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SWIGLU_LINEARS = ("gate_proj", "up_proj", "down_proj")


class SwiGlu(nn.Module):
    """``down(silu(gate) * up)``, without biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [..., D] of the same dtype."""
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        gated = functional.silu(gate) * up if torch.is_grad_enabled() else functional.silu(gate, inplace=True).mul_(up)
        return self.down_proj(gated)
