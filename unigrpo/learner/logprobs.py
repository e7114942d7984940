"""Log-probs of the true tokens at the scored positions, without ever holding [N, L, V].

Hidden states are gathered at the scored positions; then the head runs on ``chunk`` of them at a time over the
position's vocabulary range. What backward needs of a chunk is not its logits:

- where the head is frozen (LoRA), d log p / d hidden, [chunk, D], is taken while the chunk's logits are there, so that
  backward is one product with the cotangent and nothing is computed twice;
- where the head trains, the chunk is computed again in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.types import ModelInput

_Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """The scored positions of one vocabulary range."""

    head: _Head
    hidden: torch.Tensor
    """[S', D]."""
    order: torch.Tensor
    """[S'] int64: place of each among all scored positions."""
    first_id: int
    """First id of the range."""


def token_logprobs(
    policy: Policy,
    model_input: ModelInput,
    targets: torch.Tensor,
    is_scored: torch.Tensor,
    range_index: torch.Tensor | None = None,
    ranges: Sequence[tuple[int, int] | None] = (None,),
    chunk: int = 1024,
) -> torch.Tensor:
    """Return log p(target | noisy input) in nats, un-tempered, over each position's vocabulary range.

    Gradients reach the hidden states and the head where these require them (once: not differentiable twice).
    Half-precision logits are raised to float32 before the softmax. No tensor is larger than chunk x V.

    Args:
        policy: the model.
        model_input: noisy ids [N, L] and padding.
        targets: [N, L] int64: the true tokens.
        is_scored: [N, L] bool.
        range_index: [N, L] int64 into ``ranges``; None is range 0 everywhere.
        ranges: half-open ranges of ids; None is all of V.
        chunk: scored positions that go through the head together.

    Returns:
        [S] in row-major order of ``is_scored.nonzero()``.

    Raises:
        ValueError: if the shapes differ, or a true token lies outside of its range.
    """
    if targets.shape != is_scored.shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, not {tuple(is_scored.shape)} as is_scored")
    wanted = targets[is_scored]
    pieces = []
    parts = _gather(policy, model_input, is_scored, range_index, ranges)
    for part in parts:
        local = wanted[part.order] - part.first_id
        _check_range(local, part)
        pieces.append(_logprobs(part.head, part.hidden, local, chunk))
    return _in_order(pieces, parts)


def _check_range(local: torch.Tensor, part: _Scored) -> None:
    """Refuse true tokens, counted from the start of the range, that the range does not hold."""
    if not len(local):
        return
    lowest, highest, size = int(local.min()), int(local.max()), part.head(part.hidden[:0].detach()).shape[-1]
    if lowest < 0 or highest >= size:
        raise ValueError(
            f"true tokens {lowest + part.first_id}..{highest + part.first_id} do not lie in the vocabulary range "
            f"{part.first_id}:{part.first_id + size}; score with the range that the sampler used"
        )


def _gather(
    policy: Policy,
    model_input: ModelInput,
    is_scored: torch.Tensor,
    range_index: torch.Tensor | None,
    ranges: Sequence[tuple[int, int] | None],
) -> list[_Scored]:
    """Run the body of the model and keep the scored positions, one part a range."""
    if is_scored.shape != model_input.token_ids.shape:
        raise ValueError(
            f"is_scored has shape {tuple(is_scored.shape)}, not {tuple(model_input.token_ids.shape)} as the ids"
        )
    flat = is_scored.flatten().nonzero()[:, 0]
    hidden = policy.hidden(model_input).flatten(0, 1).index_select(0, flat)
    if range_index is None or len(ranges) == 1:
        occurring = {0: torch.arange(len(flat), device=flat.device)}
    else:
        index = range_index.flatten()[flat]
        occurring = {number: torch.nonzero(index == number)[:, 0] for number in range(len(ranges))}
    return [
        _Scored(
            head=partial(policy.head, vocabulary_range=ranges[number]),
            hidden=hidden if len(occurring) == 1 else hidden.index_select(0, order),
            order=order,
            first_id=(ranges[number] or (0, 0))[0],
        )
        for number, order in occurring.items()
    ]


def _in_order(pieces: list[torch.Tensor], parts: list[_Scored]) -> torch.Tensor:
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat(pieces)[torch.cat([part.order for part in parts]).argsort()]


def _logprobs(head: _Head, hidden: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return [S'] over one range, by the leanest way that gives the gradients asked for."""
    if len(hidden) <= chunk:
        return _chunk_logprobs(head, hidden, targets)
    pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_chunk_logprobs(head, *pair) for pair in pairs])
    if head(hidden[:0].detach()).requires_grad:
        recomputed = partial(checkpoint, _chunk_logprobs, head, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([recomputed(*pair) for pair in pairs])
    if hidden.requires_grad:
        return _FrozenHead.apply(hidden, targets, head, chunk)
    return torch.cat([_chunk_logprobs(head, *pair) for pair in pairs])


def _chunk_logprobs(head: _Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = _widened(head(hidden))
    if torch.is_grad_enabled():
        return -F.cross_entropy(logits, targets, reduction="none")
    # In place, by cross_entropy's own kernel: half the memory, and bit by bit the floats of a pass with gradient.
    return torch.log_softmax(logits, -1, out=logits).gather(-1, targets[:, None])[:, 0]


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class _FrozenHead(torch.autograd.Function):
    """Log-probs by chunks under a head that does not train; keeps d log p / d hidden instead of logits."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: _Head, chunk: int) -> torch.Tensor:
        """Return [S'], and keep [S', D]: a row's log-prob depends on its own hidden state alone."""
        jacobian = torch.empty_like(hidden)
        pieces = []
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk].detach().requires_grad_()
            with torch.enable_grad():
                piece = _chunk_logprobs(head, rows, targets[start : start + chunk])
                jacobian[start : start + chunk] = torch.autograd.grad(piece.sum(), rows)[0]
            pieces.append(piece.detach())
        ctx.save_for_backward(jacobian)
        return torch.cat(pieces)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Scale each kept row."""
        (jacobian,) = ctx.saved_tensors
        return cotangent[:, None].to(jacobian.dtype) * jacobian, None, None, None
