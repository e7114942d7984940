"""The checks let the good estimators through and name what a bad one breaks."""

from dataclasses import dataclass, replace

import pytest
import torch

from unigrpo.errors import ConformanceError
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.testing.estimator_checks import check_estimator


@pytest.mark.parametrize("spacing", ["even", "alg1", "random"])
@pytest.mark.parametrize("normalizer", ["scored", "completion"])
def test_unigrpo_keeps_the_contract(spacing, normalizer):
    check_estimator(UniGRPO(spacing=spacing, normalizer=normalizer))


@dataclass(frozen=True)
class Bad:
    """UniGRPO with one promise broken."""

    broken: str

    def draw(self, batch, step, update, num_updates, mask_token_id):
        if self.broken == "place":
            batch = replace(batch, row_seeds=torch.arange(len(batch.row_seeds)))
        elif self.broken == "neighbors":
            batch = replace(batch, row_seeds=batch.row_seeds + batch.row_seeds.sum())
        draw = UniGRPO().draw(batch, step, update, num_updates, mask_token_id)
        if self.broken == "generator":
            torch.rand(1)
        elif self.broken == "prompt":
            return replace(draw, noisy_ids=draw.noisy_ids.index_fill(1, torch.tensor([0]), mask_token_id))
        elif self.broken == "tail":
            return replace(draw, is_scored=draw.is_scored | batch.is_tail)
        elif self.broken == "weight":
            return replace(draw, weight=draw.weight + 1)
        elif self.broken == "padding":
            return replace(draw, weight=draw.weight * batch.token_ids.shape[1])
        elif self.broken == "shape":
            return replace(draw, weight=draw.weight[:, 1:])
        return draw


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("generator", "moves a global random generator"),
        ("prompt", "a prompt or padding position is noised"),
        ("tail", "a position off the completion is scored"),
        ("weight", "not scored has a weight"),
        ("padding", "weight changes with the padding"),
        ("place", "changes with its place"),
        ("neighbors", "changes with its neighbors"),
        ("shape", r"weight has shape \(6, 39\); wanted \(6, 40\)"),
    ],
)
def test_a_bad_estimator_is_caught_by_name(broken, problem):
    with pytest.raises(ConformanceError, match=problem):
        check_estimator(Bad(broken))
