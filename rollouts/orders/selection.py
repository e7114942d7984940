"""Which of the masked positions a denoising step commits: one function an order, whatever the schedule and the family.

Most orders score the drawn tokens by their logits, and the highest scores are committed; ``random`` takes the highest
of noise, ``origin`` a coin a position. Letters: **S** masked positions, **V** ids that may be drawn, **n** rows, **B**
positions of the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from unigrpo.types import Remasking

DREAM_TOP_K = 50
"""Dream's released sampler scores the 50 likeliest tokens, unless a call gives another ``top_k``.

Its generation settings start from config.json (``from_model_config``), and there transformers 4 gives every model a
top_k of 50; the null in generation_config.json is not read. The release draws among these alone, too. Here the draw is
not cut, so that at temperature 1 tokens are the policy's own.
"""

Score = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""From logits [S, V] (guided, un-tempered), drawn columns [S] and the draw's temperature to scores [S]."""


def low_confidence(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-prob of the token at temperature 1, in nats (LLaDA, arXiv 2502.09992; MMaDA)."""
    return logits.gather(-1, drawn[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def maskgit_plus(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the probability of the token at the draw's temperature (Dream's sampler); 0 beyond the likeliest 50."""
    tempered, likeliest = _likeliest(logits, temperature)
    chosen = tempered.gather(-1, drawn[:, None]).squeeze(-1)
    probability = (chosen - torch.logsumexp(likeliest, dim=-1)).exp()
    return torch.where(chosen < likeliest[:, -1], 0.0, probability)


def entropy(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the negated entropy of the likeliest 50 at the draw's temperature, in nats (Dream's sampler)."""
    logprobs = torch.log_softmax(_likeliest(logits, temperature)[1], dim=-1)
    return (logprobs.exp() * logprobs).sum(dim=-1)


def topk_margin(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how much likelier the likeliest token is than the next one (Dream's sampler)."""
    probabilities = torch.softmax(_likeliest(logits, temperature)[1], dim=-1)
    second = probabilities[:, 1] if probabilities.shape[-1] > 1 else 0.0
    return probabilities[:, 0] - second


def _likeliest(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits at the draw's temperature, and the highest 50 of them in falling order."""
    tempered = logits if temperature == 0 else logits / temperature
    return tempered, tempered.topk(min(DREAM_TOP_K, logits.shape[-1]), dim=-1).values


def full_entropy(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the negated entropy over all ids at temperature 1, in nats (LaViDa's released sampler)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return (logprobs.exp() * logprobs).sum(dim=-1)


def full_margin(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how much likelier the likeliest of all ids is than the next, at temperature 1 (LaViDa, dLLM-RL)."""
    best = torch.softmax(logits, dim=-1).topk(min(2, logits.shape[-1]), dim=-1).values
    return best[:, 0] - best[:, 1:].sum(dim=-1)


SCORES: dict[Remasking, Score] = {
    "maskgit_plus": maskgit_plus,
    "entropy": entropy,
    "topk_margin": topk_margin,
    "full_entropy": full_entropy,
    "full_margin": full_margin,
}
"""The orders that look at more of the logits than the drawn token's log-prob."""


def sequential_score(scores: torch.Tensor) -> torch.Tensor:
    """Return [n, B]: higher the further to the left, whatever was drawn (SDAR's ``sequential``)."""
    columns = torch.arange(scores.shape[1], 0, -1, device=scores.device, dtype=scores.dtype)
    return columns.expand_as(scores)


def origin(uniforms: torch.Tensor, is_masked: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Return [n, B]: each masked position by itself, with the probability that the schedule gives to a position.

    The process that masked diffusion reverses; how many are committed is itself random (Dream's released sampler).

    Args:
        uniforms: [n, B] in (0, 1).
        is_masked: [n, B].
        fraction: [n] of the masked positions that are expected to be committed.
    """
    return is_masked & (uniforms < fraction[:, None])


def highest(scores: torch.Tensor, is_masked: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return [n, B]: the ``count`` [n] masked positions with the highest scores, the first ones of equals."""
    scores = scores.masked_fill(~is_masked, -torch.inf)
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return is_masked & (rank < count[:, None])


def highest_or_above(
    logprobs: torch.Tensor, is_masked: torch.Tensor, count: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Return [n, B]: all masked positions above the threshold, where they are at least ``count``, else the highest.

    Args:
        logprobs: [n, B] nats, of the drawn tokens.
        is_masked: [n, B].
        count: [n].
        threshold: a probability (SDAR's ``low_confidence_dynamic``).
    """
    is_above = is_masked & (logprobs > math.log(threshold))
    return torch.where((is_above.sum(1) >= count)[:, None], is_above, highest(logprobs, is_masked, count))
