"""The margin of LaViDa and dLLM-RL (released samplers)."""

from __future__ import annotations

import torch

from unigrpo.rollouts.orders.base import Highest


class FullMargin(Highest):
    """The widest margin between the two likeliest of all ids first, at temperature 1."""

    reads = "logits"

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: how much likelier the likeliest token is than the next one."""
        best = torch.softmax(logits, dim=-1).topk(min(2, logits.shape[-1]), dim=-1).values
        return best[:, 0] - best[:, 1:].sum(dim=-1)
