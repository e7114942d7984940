"""The checks of policies and samplers find what they are for: each fault is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.models.llada import LladaPolicy
from unigrpo.rollouts import sample
from unigrpo.testing.conformance import ConformanceError, check_policy, check_sampler
from unigrpo.testing.make_tiny import make_tiny
from unigrpo.types import ModelInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llada", tmp_path_factory.mktemp("checkpoint") / "policy")


class SeesPadding(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(replace(model_input, is_padding=None))


class SeesNeighbours(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        hidden = super().hidden(model_input)
        return hidden + 0.01 * hidden.mean(dim=0)


class IgnoresPositions(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(replace(model_input, positions=None)) + 0.01 * torch.arange(
            model_input.token_ids.shape[1]
        ).view(1, -1, 1)


class DrawsTheMask(LladaPolicy):
    def head(self, hidden: torch.Tensor, vocabulary_range: tuple[int, int] | None = None) -> torch.Tensor:
        return self.module.head(hidden, vocabulary_range)


class TargetsTheHeadTwice(LladaPolicy):
    @property
    def lora_targets(self) -> list[str]:
        return [*super().lora_targets, "model.transformer.wte"]


class StopsTheGradient(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        blocks = self.module.model.transformer.blocks
        handle = blocks[1].register_forward_pre_hook(lambda _block, inputs: (inputs[0].detach(), *inputs[1:]))
        hidden = super().hidden(model_input)
        handle.remove()
        return hidden


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (SeesPadding, "padding on the right changes the logits"),
        (SeesNeighbours, "row 0 alone changes the logits"),
        (IgnoresPositions, "padding on the left changes the logits"),
        (DrawsTheMask, "the mask token 403 has probability"),
        (TargetsTheHeadTwice, r"lora_targets names \['model.transformer.wte'\]"),
        (StopsTheGradient, r"no gradient reaches model.transformer.blocks.0.* \(7 in all\)"),
    ],
)
def test_a_broken_policy_is_named(folder: Path, fault: type[LladaPolicy], message: str) -> None:
    def load(path: Path, /, *, dtype: str) -> Any:
        policy = load_policy(path, dtype=dtype)
        policy.__class__ = fault
        return policy

    with pytest.raises(ConformanceError, match=message):
        check_policy(folder, load=load)


def leaves_masks(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample(policy, token_ids, **settings)
    return replace(found, token_ids=torch.where(token_ids == 403, token_ids, found.token_ids))


def rewrites_the_prompt(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample(policy, token_ids, **settings)
    return replace(found, token_ids=found.token_ids.roll(1, dims=1))


def seeds_by_place(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    return sample(policy, token_ids, **settings | {"seeds": range(len(token_ids))})


def uses_global_noise(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    torch.rand(1)
    return sample(policy, token_ids, **settings)


def leaves_the_range(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample(policy, token_ids, **settings)
    return replace(found, token_ids=torch.where(token_ids == 403, 414, found.token_ids))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (leaves_masks, "a mask token is left"),
        (rewrites_the_prompt, "a given token was changed"),
        (seeds_by_place, "rows in another order: .* tokens differ"),
        (uses_global_noise, "the global random state was used"),
        (leaves_the_range, "outside of the range"),
    ],
)
def test_a_broken_sampler_is_named(folder: Path, fault: Any, message: str) -> None:
    policy = load_policy(folder, dtype="float32")
    assert policy.vocabulary.mask_token_id == 403
    with pytest.raises(ConformanceError, match=message):
        check_sampler(policy, sampler=fault)
