"""Mixture of experts: two routers, and the sum over the chosen experts, expert by expert or, packed, all at once.

Letters: **T** tokens, **D** width, **E** experts, **K** chosen a token. Every expert keeps linear layers of its own, so
that the names and shapes are those of the released checkpoints and an adapter may sit on any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from unigrpo.errors import UserError
from unigrpo.models.layers.packed_experts import PackedExperts
from unigrpo.models.layers.swiglu import SwiGlu

Route = tuple[Tensor, Tensor]
"""Experts [T, K] int64 and their weights [T, K] float32."""

EPSILON = 1e-20
"""Added to the sum of the chosen scores before division (LLaDA2.0)."""


class SoftmaxRouter(nn.Module):
    """Softmax over all experts in float32, and the K highest with their probabilities.

    As in LLaDA-MoE, and, with the K weights divided by their sum, in Qwen3's layout. The released name of its matrix is
    ``gate.weight``.
    """

    def __init__(self, width: int, num_experts: int, num_chosen: int, *, is_normalized: bool = False) -> None:
        super().__init__()
        self.is_normalized = is_normalized
        _check_chosen(num_chosen, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        self.num_chosen = num_chosen

    def forward(self, hidden: Tensor) -> Route:
        """Return the route of hidden states [T, D]."""
        probabilities = functional.linear(hidden, self.weight).float().softmax(dim=-1)
        weights, experts = probabilities.topk(self.num_chosen, dim=-1)
        return experts, weights / weights.sum(dim=-1, keepdim=True) if self.is_normalized else weights


class GroupedSigmoidRouter(nn.Module):
    """Sigmoid scores in float32; the best groups by the sum of their two best, then the K best experts in these.

    As in LLaDA2.0 and DeepSeek-V3: what is chosen follows score + bias, the weights follow the scores alone, divided by
    their sum and multiplied by a factor.

    Args:
        width: D.
        num_experts: E.
        num_chosen: K.
        num_groups: equal groups of neighbouring experts.
        num_chosen_groups: groups that the experts may come from.
        scale: of the weights, whose sum it is.
    """

    expert_bias: Tensor
    """[E], saved with the weights; it does not train."""

    def __init__(
        self, width: int, num_experts: int, num_chosen: int, *, num_groups: int, num_chosen_groups: int, scale: float
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_experts % num_groups or not 1 <= num_chosen_groups <= num_groups:
            raise UserError(
                f"{num_experts} experts in {num_groups} groups of which {num_chosen_groups} are chosen; wanted equal "
                "groups and no more chosen than there are"
            )
        _check_chosen(num_chosen, num_chosen_groups * (num_experts // num_groups))
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        self.register_buffer("expert_bias", torch.zeros(num_experts))
        self.num_chosen, self.num_groups, self.num_chosen_groups = num_chosen, num_groups, num_chosen_groups
        self.scale = scale

    def forward(self, hidden: Tensor) -> Route:
        """Return the route of hidden states [T, D]."""
        scores = functional.linear(hidden.float(), self.weight.float()).sigmoid()
        experts = self._choose((scores + self.expert_bias.float()).detach())
        chosen = scores.gather(1, experts)
        return experts, chosen / (chosen.sum(dim=-1, keepdim=True) + EPSILON) * self.scale

    def _choose(self, biased: Tensor) -> Tensor:
        if self.num_chosen_groups < self.num_groups:
            grouped = biased.view(len(biased), self.num_groups, -1)
            group_score = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
            groups = group_score.topk(self.num_chosen_groups, dim=-1).indices
            is_allowed = torch.zeros_like(group_score, dtype=torch.bool).scatter_(1, groups, True)
            biased = grouped.masked_fill(~is_allowed[:, :, None], -torch.inf).flatten(1)
        return biased.topk(self.num_chosen, dim=-1).indices


def _check_chosen(num_chosen: int, num_available: int) -> None:
    if not 1 <= num_chosen <= num_available:
        raise UserError(f"{num_chosen} experts a token of {num_available} that may be chosen; wanted at least one")


class ExpertMixture(nn.Module):
    """Routed experts and, where a family has one, a shared expert that every token passes.

    Args:
        router: under the released name ``gate``.
        width: D.
        inner: of each expert.
        num_experts: E.
        shared_inner: of ``shared_experts``; None is no shared expert.
    """

    def __init__(
        self, router: nn.Module, width: int, inner: int, num_experts: int, shared_inner: int | None = None
    ) -> None:
        super().__init__()
        self.gate = router
        self.experts = nn.ModuleList(SwiGlu(width, inner) for _ in range(num_experts))
        if shared_inner is not None:
            self.shared_experts = SwiGlu(width, shared_inner)
        self._packed: PackedExperts | None = None

    @property
    def _trains(self) -> bool:
        """Return whether an expert is to get a gradient in this pass."""
        return torch.is_grad_enabled() and any(weight.requires_grad for weight in self.experts.parameters())

    def pack(self) -> bool:
        """Lay the routed experts side by side, for as long as they are frozen; return whether that could be done."""
        self._packed = PackedExperts.of(self.experts)
        return self._packed is not None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [..., D] of the same dtype."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        route = self.gate(flat)
        if self._packed is not None and not self._packed.holds(self.experts):
            self._packed = None  # an adapter, or weights of its own: each expert runs by itself from now on
        if self._packed is not None and not self._trains:
            mixed = self._packed.mix(flat, *route)
        else:
            mixed = mix(flat, self.experts, *route)
        if "shared_experts" in self._modules:
            mixed = mixed + self.shared_experts(flat)
        return mixed.view_as(hidden)


def mix(hidden: Tensor, experts: nn.ModuleList, chosen: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum [T, D] over the chosen experts of each token.

    Token-expert pairs are sorted by expert, so that each expert that was chosen runs once, on its own rows, and what it
    gives is added where it belongs while it is at hand. Experts come in order of their number, whatever the batch.
    ``chosen`` are [T, K] int64, ``weights`` [T, K] float32, rounded to the dtype of ``hidden`` [T, D].
    """
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=len(experts)).tolist()
    rows = (order // chosen.shape[1]).split(counts)
    shares = weights.to(hidden.dtype).flatten().index_select(0, order)[:, None].split(counts)
    mixed = torch.zeros_like(hidden)
    for expert, row, share in zip(experts, rows, shares, strict=True):
        if len(row):
            mixed.index_add_(0, row, expert(hidden.index_select(0, row)) * share)
    return mixed
