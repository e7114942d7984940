"""Dream's orders and timesteps against its released sampler, and on any family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.models.policies.dream import DreamPolicy
from unigrpo.rollouts import sample_ids
from unigrpo.rollouts.orders.base import Candidates
from unigrpo.rollouts.orders.origin import Origin
from unigrpo.rollouts.schedules.dream import Dream

GOLDEN = Path(__file__).parent / "golden"
MASK = 500
CASES = json.loads((GOLDEN / "dream_tiny" / "cases.json").read_text())
GREEDY = [case for case in CASES if case["alg"] != "origin"]
(ORIGIN,) = (case for case in CASES if case["alg"] == "origin")
ORDERS = ("low_confidence", "random", "entropy", "maskgit_plus", "topk_margin", "origin", "sequential")


@pytest.fixture(scope="module")
def dream() -> DreamPolicy:
    policy = load_policy(GOLDEN / "dream_tiny", dtype="float32")
    assert isinstance(policy, DreamPolicy)
    return policy


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "dream_tiny" / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def canvas(golden: dict[str, torch.Tensor], case: dict[str, Any]) -> torch.Tensor:
    prompt = golden[f"in_{case['name']}"]
    return torch.cat((prompt, torch.full((len(prompt), case["gen"]), MASK)), dim=1)


@pytest.mark.parametrize("case", GREEDY, ids=lambda case: case["name"])
def test_tokens_and_order_equal_dreams_sampler(
    dream: DreamPolicy, golden: dict[str, torch.Tensor], case: dict[str, Any]
) -> None:
    assert min(case["min_argmax_margin"], case["min_selection_gap"]) >= 3e-5, "every case is strict"
    out = sample_ids(
        dream, canvas(golden, case), num_denoising_steps=case["steps"], remasking=case["alg"], schedule="dream"
    )
    assert torch.equal(out.token_ids, golden[f"out_{case['name']}"])
    for step, history in enumerate(golden[f"history_{case['name']}"]):
        assert torch.equal(out.committed_step > step, history == MASK)


def test_origin_equals_dreams_sampler_under_its_recorded_coins(
    dream: DreamPolicy, golden: dict[str, torch.Tensor]
) -> None:
    ids = canvas(golden, ORIGIN)
    generator = torch.Generator().manual_seed(ORIGIN["torch_manual_seed"])
    for step, history in enumerate(golden[f"history_{ORIGIN['name']}"]):
        is_masked = ids == MASK
        coins = torch.ones(ids.shape)
        coins[is_masked] = torch.rand(int(is_masked.sum()), generator=generator)
        share = Dream().fraction(step, ORIGIN["steps"]).expand(1)
        is_committed = Origin().select(Candidates(scores=coins, is_masked=is_masked, share=share, noise=coins))
        assert int(is_committed.sum()) == ORIGIN["unmasked_per_step"][step]
        with torch.no_grad():
            ids = torch.where(is_committed, dream.logits(ids).argmax(-1), ids)
        assert torch.equal(ids, history)


@pytest.mark.parametrize("schedule", ["linear", "dream", "cosine", "pow2"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_fills_every_family_under_every_schedule(order: Any, schedule: Any) -> None:
    ids = torch.full((3, 21), MASK)
    ids[:, :9] = torch.arange(27).view(3, 9)
    for name in ("dream_tiny", "llada_tiny"):
        policy = load_policy(GOLDEN / name, dtype="float32", vocabulary={"mask_token_id": MASK})
        out = sample_ids(
            policy,
            ids,
            num_denoising_steps=5,
            remasking=order,
            schedule=schedule,
            temperature=1.0,
            vocabulary_range=(0, 480),
        )
        assert (out.token_ids != MASK).all()
        assert torch.equal(out.token_ids[:, :9], ids[:, :9])
        assert out.committed_step[:, 9:].min() >= 0
        assert out.committed_step.max() <= 4


@pytest.mark.parametrize("order", ["entropy", "maskgit_plus", "topk_margin", "origin"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbors_change_no_token(dream: DreamPolicy, order: Any, side: str) -> None:
    ids = torch.full((3, 20), MASK)
    ids[:, :8] = torch.arange(24).view(3, 8)
    settings: dict[str, Any] = {
        "num_denoising_steps": 6,
        "remasking": order,
        "schedule": "dream",
        "temperature": 1.0,
        "remasking_temperature": 0.3,
    }
    plain = sample_ids(dream, ids, seeds=[5, 6, 7], **settings).token_ids
    alone = sample_ids(dream, ids[1:2], seeds=[6], **settings).token_ids
    filler, flags = torch.full((3, 5), 77), torch.ones(3, 5, dtype=torch.bool)
    blank = torch.zeros(ids.shape, dtype=torch.bool)
    parts = [(filler, flags), (ids, blank)] if side == "left" else [(ids, blank), (filler, flags)]
    is_padding = torch.cat([part[1] for part in parts], dim=1)
    padded = sample_ids(
        dream, torch.cat([part[0] for part in parts], dim=1), is_padding=is_padding, seeds=[5, 6, 7], **settings
    )
    assert torch.equal(alone[0], plain[1])
    assert torch.equal(padded.token_ids[~is_padding].view(3, 20), plain)


def test_origin_commits_as_many_as_the_schedule_says_in_the_mean(dream: DreamPolicy) -> None:
    ids = torch.full((64, 20), MASK)
    ids[:, :4] = torch.tensor([1, 2, 3, 4])
    out = sample_ids(dream, ids, num_denoising_steps=4, remasking="origin")
    per_step = torch.stack([(out.committed_step == step).float().sum(1) for step in range(4)], dim=1)
    assert per_step.mean(0).tolist() == pytest.approx([4.0] * 4, abs=0.6)
    assert per_step[:, 0].std() > 1.0, "sqrt(16 * 1/4 * 3/4) = 1.7: the count itself is drawn"
