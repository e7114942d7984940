"""Which open positions are scored, from the token ids alone."""

from __future__ import annotations

import torch


def completion_masks(
    token_ids: torch.Tensor,
    is_open: torch.Tensor,
    eos_token_id: int,
    is_text: torch.Tensor | None = None,
    span_index: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the open positions into what is scored and what comes after the end.

    Args:
        token_ids: [N, L] int64, filled.
        is_open: [N, L] bool: positions that the sampler filled.
        eos_token_id: ends a text span.
        is_text: [N, L] bool: positions of text spans; image codes never end early. None: all text.
        span_index: [N, L] int64, non-decreasing along a row: which span a position is in; an EOS ends its own span
            only. None: one span a row.

    Returns:
        is_completion [N, L], open positions up to and including the first EOS of their span, and is_tail [N, L], the
        open positions after it.

    Raises:
        ValueError: if the shapes differ.
    """
    for name, other in (("is_open", is_open), ("is_text", is_text), ("span_index", span_index)):
        if other is not None and other.shape != token_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)}, token_ids {tuple(token_ids.shape)}; give one a position"
            )
    is_end = is_open & (token_ids == eos_token_id)
    if is_text is not None:
        is_end = is_end & is_text
    num_ends_before = is_end.long().cumsum(-1) - is_end.long()
    if span_index is not None:
        is_first = torch.ones_like(is_open)
        is_first[..., 1:] = span_index[..., 1:] != span_index[..., :-1]
        at_start = torch.where(is_first, num_ends_before, torch.zeros_like(num_ends_before))
        num_ends_before = num_ends_before - at_start.cummax(-1).values
    is_after = num_ends_before > 0
    if is_text is not None:
        is_after = is_after & is_text
    return is_open & ~is_after, is_open & is_after
