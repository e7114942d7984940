"""What a ratio is: how far the policy has moved from the one that generated, at each scored token."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch


class Ratio(Protocol):
    """The importance ratio that an objective weighs advantages with."""

    is_linear: ClassVar[bool]
    """Whether the ratio of a token is a function of that token alone. Where it is not (the ratio of a whole
    completion), the learner takes a pass without gradient over the whole draw first."""

    def __call__(self, log_ratio: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
        """Return [S], the ratio of each token.

        Args:
            log_ratio: [S] nats, log p - log p_old, clamped to +-20, with gradient;
                `methods.log_ratio.bounded_exp` keeps its exponential from outweighing a batch.
            rollout: [S] int64, the rollout of each token.
        """
