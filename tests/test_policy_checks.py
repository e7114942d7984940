"""The checks of policies and samplers find what they are for: each fault is named."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.policies.llada import LladaPolicy
from unigrpo.models.policies.sdar import SdarPolicy
from unigrpo.models.text_policy import TextPolicy
from unigrpo.rollouts import sample_ids
from unigrpo.testing.conformance import ConformanceError, check_policy, check_sampler
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.types import ModelInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llada", tmp_path_factory.mktemp("checkpoint") / "policy")


def loader_of(fault: type[TextPolicy]) -> Any:
    def load(path: Path, /, *, dtype: str) -> Any:
        policy = load_policy(path, dtype=dtype)
        policy.__class__ = fault
        return policy

    return load


class SeesPadding(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(replace(model_input, is_padding=None))


class SeesNeighbors(LladaPolicy):
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


class IsBlankInHalfPrecision(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        hidden = super().hidden(model_input)
        return hidden * (hidden.dtype == torch.float32)


class SeesOnlyWhatStandsBefore(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        length = model_input.token_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        embedded = self.module.model.transformer.wte(model_input.token_ids)
        visible = visible_keys(model_input.is_padding)
        if visible is not None:
            causal = causal & visible | torch.eye(length, dtype=torch.bool)
        return self.module.through(embedded, causal, model_input.positions)


class Detaches(LladaPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(model_input).detach()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (SeesPadding, "padding on the right changes the logits"),
        (SeesNeighbors, "row 0 alone changes the logits"),
        (IgnoresPositions, "padding on the left changes the logits"),
        (DrawsTheMask, "the mask token 403 has probability"),
        (TargetsTheHeadTwice, r"lora_targets names \['model.transformer.wte'\]"),
        (IsBlankInHalfPrecision, "in bfloat16 the logits have a cosine of 0 "),
        (Detaches, "logits carry no gradient"),
        (SeesOnlyWhatStandsBefore, "the second position does not see the last one"),
        (StopsTheGradient, r"no gradient reaches model.transformer.blocks.0.* \(7 in all\)"),
    ],
)
def test_a_broken_policy_is_named(folder: Path, fault: type[LladaPolicy], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_policy(folder, load=loader_of(fault))


def leaves_masks(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample_ids(policy, token_ids, **settings)
    return replace(found, token_ids=torch.where(token_ids == 403, token_ids, found.token_ids))


def rewrites_the_prompt(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample_ids(policy, token_ids, **settings)
    return replace(found, token_ids=found.token_ids.roll(1, dims=1))


def seeds_by_place(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    return sample_ids(policy, token_ids, **settings | {"seeds": range(len(token_ids))})


def uses_global_noise(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    torch.rand(1)
    return sample_ids(policy, token_ids, **settings)


def leaves_the_range(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample_ids(policy, token_ids, **settings)
    return replace(found, token_ids=torch.where(token_ids == 403, 414, found.token_ids))


def writes_into_the_ids(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample_ids(policy, token_ids, **settings)
    token_ids.copy_(found.token_ids)
    return found


def uses_numpys_noise(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    np.random.rand()
    return sample_ids(policy, token_ids, **settings)


def uses_pythons_noise(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    random.random()
    return sample_ids(policy, token_ids, **settings)


def tells_no_step(policy: Any, token_ids: torch.Tensor, **settings: Any) -> Any:
    found = sample_ids(policy, token_ids, **settings)
    return replace(found, committed_step=found.committed_step.clamp(max=0))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (writes_into_the_ids, "the caller's token ids were written into"),
        (uses_numpys_noise, "the global random state was used"),
        (uses_pythons_noise, "the global random state was used"),
        (tells_no_step, "every token says that step 0 of 8 committed it"),
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


class SeesLaterBlocks(SdarPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(replace(model_input, block_length=64))


class SeesPartOfItsBlock(SdarPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(replace(model_input, block_length=1))


class ForgetsTheCleanIds(SdarPolicy):
    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        return super().hidden(replace(model_input, clean_ids=None))


class KeepsWrongKeys(SdarPolicy):
    def hidden_cached(self, model_input: ModelInput, cache: Any, rows: torch.Tensor | None = None) -> torch.Tensor:
        is_later = not cache.is_empty
        return super().hidden_cached(model_input, cache, rows) + 0.3 * is_later


class KeepsKeysOfTheWrongPlace(SdarPolicy):
    def hidden_cached(self, model_input: ModelInput, cache: Any, rows: torch.Tensor | None = None) -> torch.Tensor:
        hidden = super().hidden_cached(model_input, cache, rows)
        cache._keys[0].mul_(1.05)
        return hidden


@pytest.fixture(scope="module")
def sdar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("sdar", tmp_path_factory.mktemp("checkpoint") / "sdar")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (SeesLaterBlocks, "a token of the second block, in the first, changes the logits"),
        (ForgetsTheCleanIds, "clean_ids of the first block, in the second, changes the logits"),
        (SeesPartOfItsBlock, "the first position of a block does not see its last one"),
    ],
)
def test_a_block_that_sees_too_much_or_too_little_is_named(sdar: Path, fault: type[SdarPolicy], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_policy(sdar, load=loader_of(fault))


@pytest.mark.parametrize("fault", [KeepsWrongKeys, KeepsKeysOfTheWrongPlace])
def test_a_cache_that_changes_what_is_sampled_is_named(sdar: Path, fault: type[SdarPolicy]) -> None:
    policy = load_policy(sdar, dtype="float32")
    check_sampler(policy)
    policy.__class__ = fault
    with pytest.raises(ConformanceError, match=r"without kept keys: .* tokens differ|kept keys move log-probs"):
        check_sampler(policy)
