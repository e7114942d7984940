"""The supervised losses of the MMaDA reference, from logits and labels.

N rows of length L over a vocabulary of V; a label of ``IGNORED`` counts nowhere. Every softmax is over the whole
vocabulary. ``loss_t2i``, ``loss_lm`` and ``loss_mmu`` take all logits: they are the definition, held to the
reference's numbers by the tests. The supervised stage sums the same terms from the log-probs of the masked positions
alone (``unigrpo.sft.task_loss``), with ``text_weights``, ``text_mask_prob`` and ``num_masked_codes``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100


def loss_t2i(logits: Tensor, labels: Tensor, num_prefix: int) -> Tensor:
    """Return the text-to-image loss: mean cross-entropy of the labelled positions after a prefix, in nats.

    The reference labels the image-start and image-end tokens next to the masked codes, so that visible tokens count,
    too: pass its labels to get its number (``modeling_mmada.py``, forward_process). No weight by mask ratio.

    Args:
        logits: [N, L, V].
        labels: [N, L] int64; ``IGNORED`` at codes that were not masked.
        num_prefix: leading positions that do not count (task token and caption; the image-start token is the next).

    Raises:
        ValueError: if no position is labelled.
    """
    kept = labels[:, num_prefix:]
    if not bool((kept != IGNORED).any()):
        raise ValueError(f"no label after the first {num_prefix} of {labels.shape[1]} positions; nothing to learn from")
    return cross_entropy(logits[:, num_prefix:].flatten(0, 1).float(), kept.flatten(), ignore_index=IGNORED)


def loss_lm(
    logits: Tensor, labels: Tensor, is_masked: Tensor, mask_prob: Tensor, answer_lengths: Tensor | None = None
) -> Tensor:
    """Return the text loss: cross-entropy of the masked tokens over their mask probability.

    LLaDA's bound on the log-likelihood (arXiv 2502.09992, eq. 3). Without answer lengths the sum is divided by N * L;
    with them each row by its own length, and then by N. A row in which nothing is masked adds 0.

    Args:
        logits: [N, L, V].
        labels: [N, L] int64, the clean tokens.
        is_masked: [N, L] bool.
        mask_prob: [N, L], in (0, 1].
        answer_lengths: [N] or [N, L]: tokens of the answer, the padding that teaches length included.
    """
    losses = cross_entropy(logits[is_masked].float(), labels[is_masked], reduction="none")
    return (text_weights(is_masked, mask_prob, answer_lengths) * losses).sum()


def loss_mmu(logits: Tensor, labels: Tensor, is_masked: Tensor, mask_prob: Tensor, answer_lengths: Tensor) -> Tensor:
    """Return the picture-question loss: ``loss_lm`` with answer lengths; the picture is never masked."""
    return loss_lm(logits, labels, is_masked, mask_prob, answer_lengths)


def text_weights(is_masked: Tensor, mask_prob: Tensor, answer_lengths: Tensor | None = None) -> Tensor:
    """Return [S] float32: what the negative log-prob of each masked token counts in ``loss_lm``, in row-major order."""
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
