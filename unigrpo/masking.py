"""From rollouts to padded tensors: which positions are prompt, completion, tail and padding, and how noise is applied.

*Mask* means diffusion noise. Padding is never inferred from a token id: released tokenizers pad with EOS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unigrpo.types import Batch, Rollout


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


def apply_mask(token_ids: torch.Tensor, is_masked: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """Return [N, L] ids with the mask token where ``is_masked``; the input stays as it is."""
    return token_ids.masked_fill(is_masked, mask_token_id)


def _is_open(rollout: Rollout) -> np.ndarray:
    is_open = np.zeros(len(rollout.token_ids), dtype=bool)
    for span in rollout.spans:
        if span.is_open:
            is_open[span.start : span.stop] = True
    return (is_open & (rollout.committed_step >= 0)) | rollout.is_completion


def _check_rollout(row: int, rollout: Rollout) -> None:
    length = len(rollout.token_ids)
    if len(rollout.is_completion) != length or len(rollout.committed_step) != length:
        raise ValueError(
            f"rollout {row} (prompt {rollout.prompt.id!r}) has {length} tokens but {len(rollout.is_completion)} "
            f"completion flags and {len(rollout.committed_step)} committed steps; each needs one a token"
        )


def collate(
    rollouts: Sequence[Rollout],
    advantages: np.ndarray | torch.Tensor,
    pad_token_id: int,
    group_ids: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """Pad rollouts on the right to one length and partition their positions.

    Args:
        rollouts: N of them, of any lengths and tasks.
        advantages: [N].
        pad_token_id: written at padding, where nothing attends to it.
        group_ids: [N], equal for the rollouts of one prompt; None numbers the prompts in order of appearance.
        device: of the tensors.

    Raises:
        ValueError: if there is no rollout, or a count does not fit.
    """
    if not len(rollouts) or len(advantages) != len(rollouts):
        raise ValueError(
            f"{len(rollouts)} rollouts and {len(advantages)} advantages; give one advantage a rollout, at least one"
        )
    if group_ids is None:
        number: dict[str, int] = {}
        group_ids = [number.setdefault(rollout.prompt.id, len(number)) for rollout in rollouts]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts], dtype=np.int64)
    shape = (len(rollouts), int(lengths.max()))
    token_ids = np.full(shape, pad_token_id, dtype=np.int64)
    is_open, is_completion = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    range_index = np.zeros(shape, dtype=np.int64)
    ranges: list[tuple[int, int] | None] = []
    for row, rollout in enumerate(rollouts):
        _check_rollout(row, rollout)
        token_ids[row, : lengths[row]] = rollout.token_ids
        is_open[row, : lengths[row]] = _is_open(rollout)
        is_completion[row, : lengths[row]] = rollout.is_completion
        for span in rollout.spans:
            if span.is_open:
                if span.vocabulary_range not in ranges:
                    ranges.append(span.vocabulary_range)
                range_index[row, span.start : span.stop] = ranges.index(span.vocabulary_range)
    is_padding = np.arange(shape[1]) >= lengths[:, None]

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Batch(
        token_ids=tensor(token_ids),
        is_prompt=tensor(~is_open & ~is_padding),
        is_completion=tensor(is_completion),
        is_tail=tensor(is_open & ~is_completion),
        is_padding=tensor(is_padding),
        range_index=tensor(range_index),
        ranges=tuple(ranges) or (None,),
        advantages=torch.as_tensor(advantages, dtype=torch.float64, device=device),
        group_ids=torch.as_tensor(group_ids, dtype=torch.int64, device=device),
        row_seeds=torch.tensor([rollout.seed for rollout in rollouts], dtype=torch.int64, device=device),
        lengths=tensor(lengths),
    )
