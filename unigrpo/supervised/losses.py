"""The weights and noise of the supervised losses of the MMaDA reference.

The supervised stage sums the log-probs of the masked positions alone (``unigrpo.supervised.sft.task_loss``).
N rows of length L.
"""

from __future__ import annotations

import torch
from torch import Tensor


def text_weights(is_masked: Tensor, mask_prob: Tensor, answer_lengths: Tensor | None = None) -> Tensor:
    """Return [S] float32: what the negative log-prob of each masked token counts, in row-major order.

    LLaDA's bound on the log-likelihood (arXiv 2502.09992, eq. 3): 1 / mask probability. Without answer lengths the sum
    is divided by N * L; with them each row by its own length, and then by N. A row in which nothing is masked adds 0.

    Args:
        is_masked: [N, L] bool.
        mask_prob: [N, L], in (0, 1].
        answer_lengths: [N] or [N, L]: tokens of the answer, the padding that teaches length included.
    """
    row, _ = is_masked.nonzero(as_tuple=True)
    if answer_lengths is None:
        return 1.0 / (mask_prob[is_masked].float() * is_masked.numel())
    lengths = answer_lengths[:, 0] if answer_lengths.dim() == 2 else answer_lengths
    return 1.0 / (mask_prob[is_masked].float() * lengths[row].float() * len(is_masked))


def text_mask_prob(time: Tensor, min_mask_ratio: float) -> Tensor:
    """Return the mask probability of text at a time in [0, 1]: ``(1 - eps) t + eps``."""
    return (1.0 - min_mask_ratio) * time + min_mask_ratio


def num_masked_codes(time: Tensor, num_codes: int) -> Tensor:
    """Return [N] int64: how many of a picture's codes are masked at a time in [0, 1].

    ``round(num_codes * cos(pi t / 2))``, at least 1 (the reference's cosine schedule).
    """
    return torch.round(num_codes * torch.cos(time * (torch.pi / 2))).long().clamp(min=1, max=num_codes)
