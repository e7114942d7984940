"""From rollouts to padded tensors: which positions are prompt, completion, tail and padding.

Padding is never inferred from a token id: released tokenizers pad with EOS.
"""

from __future__ import annotations

import numpy as np
import torch

from unigrpo.types import Batch, Rollout, Rollouts


def _is_open(rollout: Rollout) -> np.ndarray:
    is_open = np.zeros(len(rollout.token_ids), dtype=bool)
    for span in rollout.spans:
        if span.is_open:
            is_open[span.start : span.stop] = True
    return (is_open & (rollout.committed_step >= 0)) | rollout.is_completion


def _check_rollout(row: int, rollout: Rollout) -> None:
    length = len(rollout.token_ids)
    for name in ("is_completion", "committed_step", "committed_logprobs"):
        count = len(getattr(rollout, name))
        if count != length:
            raise ValueError(
                f"rollout {row} (prompt {rollout.prompt.id!r}) has {length} tokens but {count} values of {name}; "
                "each needs one a token"
            )


def collate(
    rollouts: Rollouts, advantages: np.ndarray | torch.Tensor, pad_token_id: int, device: torch.device | str = "cpu"
) -> Batch:
    """Pad rollouts on the right to one length and partition their positions.

    Args:
        rollouts: N of them, of any lengths and tasks, with their groups.
        advantages: [N].
        pad_token_id: written at padding, where nothing attends to it.
        device: of the tensors.

    Raises:
        ValueError: if there is no rollout, or a count does not fit.
    """
    if not len(rollouts) or len(advantages) != len(rollouts):
        raise ValueError(
            f"{len(rollouts)} rollouts and {len(advantages)} advantages; give one advantage a rollout, at least one"
        )
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts], dtype=np.int64)
    shape = (len(rollouts), int(lengths.max()))
    token_ids = np.full(shape, pad_token_id, dtype=np.int64)
    is_open, is_completion = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    range_index = np.zeros(shape, dtype=np.int64)
    committed_step, committed_logprobs = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    ranges: list[tuple[int, int] | None] = []
    for row, rollout in enumerate(rollouts):
        _check_rollout(row, rollout)
        token_ids[row, : lengths[row]] = rollout.token_ids
        is_open[row, : lengths[row]] = _is_open(rollout)
        is_completion[row, : lengths[row]] = rollout.is_completion
        committed_step[row, : lengths[row]] = rollout.committed_step
        committed_logprobs[row, : lengths[row]] = rollout.committed_logprobs
        for span in rollout.spans:
            if span.is_open:
                if span.vocabulary_range not in ranges:
                    ranges.append(span.vocabulary_range)
                range_index[row, span.start : span.stop] = ranges.index(span.vocabulary_range)
    is_padding = np.arange(shape[1]) >= lengths[:, None]
    is_prompt = ~is_open & ~is_padding

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Batch(
        token_ids=tensor(token_ids),
        is_prompt=tensor(is_prompt),
        is_completion=tensor(is_completion),
        is_tail=tensor(is_open & ~is_completion),
        is_padding=tensor(is_padding),
        range_index=tensor(range_index),
        ranges=tuple(ranges) or (None,),
        advantages=torch.as_tensor(advantages, dtype=torch.float64, device=device),
        group_ids=torch.as_tensor(rollouts.group_ids, dtype=torch.int64, device=device),
        row_seeds=torch.tensor([rollout.seed for rollout in rollouts], dtype=torch.int64, device=device),
        lengths=tensor(lengths),
        prompt_lengths=tensor(np.cumprod(is_prompt, axis=1, dtype=np.int64).sum(axis=1)),
        committed_step=tensor(committed_step),
        committed_logprobs=tensor(committed_logprobs),
    )
