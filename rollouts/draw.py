"""The tokens that one denoising step samples: head, guidance, temperature, confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from unigrpo.models.base import Policy

ELEMENTS_PER_CHUNK = 1 << 25
"""Logits that exist at one time: rows go through the head in chunks of at most this many elements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTokens:
    """Tokens sampled at S open positions."""

    token_ids: torch.Tensor
    """[S] int64."""
    confidence: torch.Tensor
    """[S] float32: the order's score; without one the log-prob in nats, guided, at temperature 1."""
    logprobs: torch.Tensor
    """[S] float32, nats: of the token, un-tempered and unguided."""


def sample_tokens(
    policy: Policy,
    hidden: torch.Tensor,
    unconditional: torch.Tensor | None,
    *,
    vocabulary_range: tuple[int, int] | None,
    temperature: float,
    guidance_scale: float,
    uniforms: torch.Tensor,
    banned_id: int | None = None,
    top_p: float = 1.0,
    score: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None,
) -> SampledTokens:
    """Sample one token at each position.

    Guidance is ``unconditional + (1 + scale) (conditional - unconditional)`` (the reference's form for text and for
    pictures). Temperature 0 takes the arg max. Otherwise the inverse of the cumulative distribution is read at one
    uniform a position, so that a token depends on its own logits and uniform alone.

    Args:
        policy: the model whose head is applied; its ``banned_ids`` are not sampled, nor part of the confidence.
        hidden: [S, D] hidden states of the open positions.
        unconditional: [S, D] of the unconditional twin, or None without guidance.
        vocabulary_range: half-open range of ids that may be sampled; None is all of V.
        temperature: of sampling; it does not enter the confidence.
        guidance_scale: 0 is no guidance.
        uniforms: [S] float64 in (0, 1).
        banned_id: never sampled; it keeps its share of confidence and log-probs, as in the released samplers.
        top_p: probability of the likeliest tokens that are drawn from, at the temperature; an order's score is of them.
        score: an order's, `unigrpo.rollouts.orders.base.LogitOrder`; None is the log-prob of the token.
    """
    size = policy.vocabulary.size if vocabulary_range is None else vocabulary_range[1] - vocabulary_range[0]
    rows = max(1, ELEMENTS_PER_CHUNK // size)
    parts = []
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        logits = policy.head(hidden[chunk], vocabulary_range).float()
        guided = logits
        if unconditional is not None:
            base = policy.head(unconditional[chunk], vocabulary_range).float()
            guided = base + (1.0 + guidance_scale) * (logits - base)
        guided = _without(guided, policy.banned_ids, vocabulary_range, torch.finfo(guided.dtype).min)
        allowed = guided if banned_id is None else _without(guided, (banned_id,), vocabulary_range, -torch.inf)
        scored = guided
        if top_p < 1 and temperature > 0:
            allowed, scored = (_nucleus(each, temperature, top_p) for each in (allowed, guided))
        sampled = sample_logits(allowed, temperature, uniforms[chunk])
        confidence = _logprob(guided, sampled)
        logprobs = confidence if guided is logits else _logprob(logits, sampled)
        parts.append((sampled, confidence if score is None else score(scored, sampled, temperature), logprobs))
    token_ids, confidence, logprobs = (torch.cat(column) for column in zip(*parts, strict=True))
    offset = 0 if vocabulary_range is None else vocabulary_range[0]
    return SampledTokens(token_ids=token_ids + offset, confidence=confidence, logprobs=logprobs)


def _without(
    logits: torch.Tensor, banned_ids: tuple[int, ...], vocabulary_range: tuple[int, int] | None, value: float
) -> torch.Tensor:
    """Return the logits with a value at the ids that are not to be sampled; the same tensor where there are none."""
    start, stop = vocabulary_range or (0, logits.shape[-1])
    columns = [banned_id - start for banned_id in banned_ids if start <= banned_id < stop]
    return logits.index_fill(-1, torch.tensor(columns, device=logits.device), value) if columns else logits


def _nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Return logits [S, V] without all but the likeliest tokens that first have more than ``top_p`` together."""
    ordered, order = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    is_beyond = torch.zeros_like(ordered, dtype=torch.bool).scatter_(-1, order, ordered.cumsum(-1) - ordered > top_p)
    lowest = torch.finfo(logits.dtype).min / 1e3 * min(temperature, 1.0)  # finite at the temperature
    return logits.masked_fill(is_beyond, lowest)


def sample_logits(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor) -> torch.Tensor:
    """Return [S] tokens of logits [S, V] at one uniform each; the arg max at temperature 0."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits / temperature, dim=-1).double().cumsum(dim=-1)
    threshold = uniforms.to(cumulative.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _logprob(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    chosen = logits.gather(-1, token_ids[:, None]).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)
