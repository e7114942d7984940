"""The likelihood bound: the reference's values on its own masks, and the mean over all masks of a short answer."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from unigrpo.evaluation.likelihood import draw_masks, log_likelihood, score_draws
from unigrpo.models import load_policy
from unigrpo.models.base import Policy

GOLDEN = Path(__file__).parent / "golden" / "llada_tiny"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(GOLDEN, dtype="float32")


@pytest.mark.parametrize(
    ("case", "guidance_scale"), [("mc16_b4", 0.0), ("mc64_b16", 0.0), ("mc1_b1", 0.0), ("mc16_b8_cfg0p7", 0.7)]
)
def test_value_on_the_stored_masks_is_the_reference_s(policy: Policy, case: str, guidance_scale: float) -> None:
    with np.load(GOLDEN / "log_likelihood.npz") as file:
        token_ids = torch.from_numpy(np.concatenate([file["prompt"], file["answer"]]))
        noisy = torch.from_numpy(file[f"perturbed_{case}"]).flatten(0, 1)
        wanted, prompt_length = float(file[f"value_{case}"]), len(file["prompt"])
    is_masked = noisy == policy.vocabulary.mask_token_id
    found = score_draws(policy, token_ids, noisy, is_masked, prompt_length, guidance_scale).mean()
    assert float(found) == pytest.approx(wanted, abs=1e-4)


def test_estimate_tends_to_the_mean_over_all_masks(policy: Policy) -> None:
    prompt, answer = [337, 451, 189], [135, 344, 257]
    token_ids = torch.tensor(prompt + answer)
    wanted = 0.0
    for num_masked in (1, 2, 3):
        subsets = list(combinations(range(3), num_masked))
        for subset in subsets:
            is_masked = torch.zeros(1, 6, dtype=torch.bool)
            is_masked[0, [3 + index for index in subset]] = True
            noisy = token_ids.masked_fill(is_masked, policy.vocabulary.mask_token_id)
            wanted += float(score_draws(policy, token_ids, noisy, is_masked, 3)) / len(subsets) / 3
    found = log_likelihood(policy, prompt, answer, num_draws=2400, rows=240)
    assert found == pytest.approx(wanted, abs=0.06)


def test_masks_are_the_seed_s_and_their_numbers_are_uniform() -> None:
    masks = draw_masks(2, 5, 10, torch.Generator().manual_seed(1))
    assert not masks[:, :2].any()
    assert sorted(masks.sum(dim=1).tolist()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    again = draw_masks(2, 5, 10, torch.Generator().manual_seed(1))
    assert torch.equal(masks, again)


@torch.no_grad()
def test_a_single_draw_of_one_token_is_its_log_prob(policy: Policy) -> None:
    prompt = [337, 451, 189]
    logits = policy.logits(torch.tensor([[*prompt, policy.vocabulary.mask_token_id]]))
    wanted = logits[0, 3].log_softmax(dim=-1)[42]
    assert log_likelihood(policy, prompt, [42], num_draws=1) == pytest.approx(float(wanted), abs=1e-5)


def test_nothing_to_score_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="0 answer tokens"):
        log_likelihood(policy, [1], [])
