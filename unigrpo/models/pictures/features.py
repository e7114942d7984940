"""Pictures as continuous features: token ids from the vocabulary's size on stand for rows of a feature table.

A canvas counts its own features from 0. Rows that go through the model together share one table, in which the features
of a prompt lie once, whatever the size of its group; so ids are moved up by where a row's features start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.types import Batch, Rollouts


def join_features(features: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return one table of all rows' features, and where each row's start in it.

    A row's features are [F, D] or None; rows that hold the same tensor share its place.

    Returns:
        [F', D], or None where no row has any, and [N] int64.
    """
    starts: dict[int, int] = {}
    tables: list[torch.Tensor] = []
    for table in features:
        if table is not None and id(table) not in starts:
            starts[id(table)] = sum(len(earlier) for earlier in tables)
            tables.append(table)
    offsets = torch.tensor([0 if table is None else starts[id(table)] for table in features])
    return (torch.cat(tables) if tables else None), offsets


def shift_ids(token_ids: torch.Tensor, offsets: torch.Tensor, size: int) -> torch.Tensor:
    """Return [N, L] ids with those of features, ``size`` and above, moved by the row's offset [N]."""
    return torch.where(token_ids >= size, token_ids + offsets.to(token_ids.device)[:, None], token_ids)


def with_image_features(batch: Batch, rollouts: Rollouts, policy: Policy) -> Batch:
    """Return a batch with its pictures' features, without gradient: the rollouts' own, else computed once a group.

    Families that read no pixels give the batch back as it is.
    """
    known: dict[int, torch.Tensor | None] = dict(enumerate(rollouts.image_features))
    for rollout, group in zip(rollouts, rollouts.group_ids, strict=True):
        if group not in known:  # Whatever a prompt's id: a group has the pictures of one prompt.
            known[group] = policy.image_features(rollout.prompt.images) if rollout.prompt.images else None
    table, offsets = join_features([known[group] for group in rollouts.group_ids])
    if table is None:
        return batch
    return replace(batch, token_ids=shift_ids(batch.token_ids, offsets, policy.vocabulary.size), image_features=table)
