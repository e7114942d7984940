"""Who is seen, and the attention over it, through the fused kernels that the device has."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def visible_keys(is_padding: Tensor | None) -> Tensor | None:
    """Return [N, 1, 1, L]: the keys that are seen; None where all are.

    A row that is padding from end to end sees itself: no softmax over nothing, hence no NaN.
    """
    if is_padding is None or not bool(is_padding.any()):
        return None
    return (~is_padding | is_padding.all(dim=1, keepdim=True))[:, None, None, :]


def attend(queries: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor | None) -> Tensor:
    """Return [N, H, L, W] of queries of that shape over keys and values [N, H', L', W] of as many or fewer heads.

    Args:
        queries: H heads.
        keys: H' heads, each for H / H' query heads.
        values: as the keys.
        is_visible: boolean, broadcast to [N, H, L, L']; None where every key is seen.
    """
    num_groups = queries.shape[1] // keys.shape[1]
    is_grouped = num_groups > 1
    if is_grouped and is_visible is not None and queries.device.type == "cuda":
        # With a mask the grouped form has no fused kernel there, and would hold all scores at once.
        keys, values = (part.repeat_interleave(num_groups, dim=1) for part in (keys, values))
        is_grouped = False
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=is_visible, enable_gqa=is_grouped)
