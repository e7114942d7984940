"""What an order is: the rule that says which masked positions a denoising step commits.

Whatever the schedule and the family. Letters: **S** masked positions, **V** ids that may be sampled, **n** rows, **B**
positions of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeGuard

import torch

Reads = Literal["logprob", "logits", "noise", "coins", "positions"]
NOISY = ("noise", "coins")
"""What of it differs from row to row at temperature 0, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The masked positions of a block, in one denoising step."""

    scores: torch.Tensor
    """[n, B] float64: the order's own or the sampled tokens' log-probs, with remasking noise; -inf where not masked."""
    is_masked: torch.Tensor
    """[n, B] bool."""
    share: torch.Tensor
    """[n] int64: how many to commit; for an order of coins [n] float32: the probability of each."""
    noise: torch.Tensor | None = None
    """[n, B] in (0, 1), for an order that reads noise."""


class Order(Protocol):
    """A rule for positions. What it commits in a row depends on that row alone."""

    reads: ClassVar[Reads]
    """``logprob``: of the sampled token, in nats, guided, at temperature 1. ``logits``: the order scores them itself.
    ``noise``: uniform, so that completions differ at temperature 0, too. ``coins``: noise against the schedule's
    expected fraction, each position by itself. ``positions``: nothing but where they are."""

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the masked positions to commit."""


class LogitOrder(Order, Protocol):
    """An order that looks at more of the logits than the sampled token's log-prob."""

    def score(self, logits: torch.Tensor, sampled: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return [S]: higher is committed first.

        Args:
            logits: [S, V], guided, un-tempered.
            sampled: [S] columns of the sampled tokens.
            temperature: at which they were sampled.
        """


class Highest:
    """An order that commits the highest of the candidates' scores."""

    def select(self, candidates: Candidates) -> torch.Tensor:
        """Return [n, B] bool: the highest scores."""
        return highest(candidates)


def reads_logits(order: Order) -> TypeGuard[LogitOrder]:
    """Return whether an order scores the logits itself."""
    return order.reads == "logits"


def highest(candidates: Candidates, scores: torch.Tensor | None = None) -> torch.Tensor:
    """Return [n, B]: ``share`` masked positions with the highest scores, the first ones of equals.

    Args:
        candidates: of the step.
        scores: [n, B], in place of the candidates' own.
    """
    scores = (candidates.scores if scores is None else scores).masked_fill(~candidates.is_masked, -torch.inf)
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return candidates.is_masked & (rank < candidates.share[:, None])


def likeliest(logits: torch.Tensor, temperature: float, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [S, V] at a temperature, and the highest ``top_k`` of them in falling order.

    Dream's released sampler scores the 50 likeliest tokens, unless a call gives another ``top_k``: its generation
    settings start from config.json (``from_model_config``), and there transformers 4 gives every model a top_k of 50;
    the null in generation_config.json is not read. The release samples from these alone, too. Here sampling is not cut,
    so that at temperature 1 tokens are the policy's own.

    Raises:
        ValueError: for a ``top_k`` below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; wanted 1 or more, such as the released 50")
    tempered = logits if temperature == 0 else logits / temperature
    return tempered, tempered.topk(min(top_k, logits.shape[-1]), dim=-1).values


def negative_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return [S] in nats of logits [S, V]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return (logprobs.exp() * logprobs).sum(dim=-1)
