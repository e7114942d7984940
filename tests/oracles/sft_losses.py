"""The supervised losses of the MMaDA reference from all logits: the definition, held to the reference's numbers.

N rows of length L over a vocabulary of V; a label of ``IGNORED`` counts nowhere. Every softmax is over the whole
vocabulary.
"""

from __future__ import annotations

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
    losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none").view(labels.shape)
    losses = (losses / mask_prob.float()).masked_fill(~is_masked, 0.0)
    if answer_lengths is None:
        return losses.sum() / losses.numel()
    lengths = answer_lengths[:, 0] if answer_lengths.dim() == 2 else answer_lengths
    return (losses.sum(dim=1) / lengths).mean()


def loss_mmu(logits: Tensor, labels: Tensor, is_masked: Tensor, mask_prob: Tensor, answer_lengths: Tensor) -> Tensor:
    """Return the picture-question loss: ``loss_lm`` with answer lengths; the picture is never masked."""
    return loss_lm(logits, labels, is_masked, mask_prob, answer_lengths)
