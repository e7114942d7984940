"""The head of every body: logits over all ids, or only the rows of the ids that are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from unigrpo.errors import UserError


def project(hidden: Tensor, layer: nn.Module, vocabulary_range: tuple[int, int] | None, size: int) -> Tensor:
    """Return logits [..., V'] of hidden states [..., D] over a half-open range of ids; None is all of V.

    Args:
        hidden: after the final norm.
        layer: a linear layer, an embedding that is the head, too, or what a user wrapped around one.
        vocabulary_range: start and stop.
        size: V, the rows of the layer.

    Raises:
        UserError: a range outside of 0..V.
    """
    start, stop = vocabulary_range or (0, size)
    if not 0 <= start < stop <= size:
        raise UserError(f"vocabulary range {start}:{stop} is not inside 0:{size}, the embedding")
    if isinstance(layer, nn.Embedding):
        return functional.linear(hidden, layer.weight[start:stop])
    if isinstance(layer, nn.Linear) and vocabulary_range is not None:
        bias = None if layer.bias is None else layer.bias[start:stop]
        return functional.linear(hidden, layer.weight[start:stop], bias)
    logits: Tensor = layer(hidden)
    return logits if vocabulary_range is None else logits[..., start:stop].clone()  # LoRA on the head


def suppress(token_id: int, logits: Tensor, vocabulary_range: tuple[int, int] | None) -> Tensor:
    """Return logits [..., V'] over a range in which a token has no probability; written in place.

    Over all of V (None) the token keeps its logit, as in the released samplers.
    """
    if vocabulary_range is not None and vocabulary_range[0] <= token_id < vocabulary_range[1]:
        logits[..., token_id - vocabulary_range[0]] = torch.finfo(logits.dtype).min
    return logits
