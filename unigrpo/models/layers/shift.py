"""Bodies whose output at a position predicts the next one: where each position's own prediction stands."""

from __future__ import annotations

import torch
from torch import Tensor


def predicting_positions(is_padding: Tensor) -> Tensor:
    """Return [N, L]: the position whose output predicts each one, the last before it that is not padding.

    The first of a row is predicted from its own output, as the released sampler does; so is padding before it.
    """
    index = torch.arange(is_padding.shape[1], device=is_padding.device).expand_as(is_padding)
    latest = torch.where(is_padding, -1, index).cummax(dim=1).values
    before = torch.cat((torch.full_like(latest[:, :1], -1), latest[:, :-1]), dim=1)
    return torch.where(before < 0, index, before)
