"""LLaDA2.0 and LLaDA2.1: names, logits, routes and tokens of the reference; editing that always ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from unigrpo.models import load_policy
from unigrpo.models.policies.llada2 import Llada2Policy
from unigrpo.rollouts import sample_ids
from unigrpo.types import ModelInput

GOLDEN = Path(__file__).parent / "golden"
RELEASES = ("llada2_tiny", "llada21_tiny")
MASK, NO_EOS = 500, 511


def load(release: str, eos: int = NO_EOS) -> Llada2Policy:
    return load_policy(GOLDEN / release, dtype="float32", vocabulary={"mask": MASK, "eos": eos})  # type: ignore[return-value]


def read(release: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / release / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def cases(release: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / release / "cases.json").read_text())["cases"]


@pytest.mark.parametrize("release", RELEASES)
def test_names_and_shapes_equal_the_released_layout(release: str) -> None:
    wanted = json.loads((GOLDEN / release / "state_dict_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in load(release).module.state_dict().items()} == wanted


@torch.no_grad()
@pytest.mark.parametrize("release", RELEASES)
def test_logits_equal_the_reference(release: str) -> None:
    policy, arrays = load(release), read(release)
    for name, block in (("block4", 4), ("block8", 8), ("boolmask_block8", 8), ("full_bidirectional", 24)):
        found = policy.head(policy.hidden(ModelInput(token_ids=arrays["logits_ids"], block_length=block)))
        assert (found - arrays[f"logits_{name}"]).abs().max() <= 2e-5


@torch.no_grad()
def test_hidden_states_and_routes_equal_the_reference() -> None:
    policy, arrays = load("llada2_tiny"), read("llada2_tiny")
    layers = policy.module.model.layers
    states: list[torch.Tensor] = []
    routes: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda _m, _i, output: states.append(output)) for layer in layers]
    handles += [
        layer.mlp.gate.register_forward_hook(lambda _m, _i, output: routes.append(output[0]))
        for layer in list(layers)[1:]
    ]
    policy.hidden(ModelInput(token_ids=arrays["logits_ids"], block_length=24))
    for handle in handles:
        handle.remove()
    for found, wanted in zip(routes, arrays["router_topk"], strict=True):
        assert torch.equal(found.view(2, 24, 4).sort(dim=-1).values, wanted)
    for found, wanted in zip(states[:2], arrays["hidden_states"][1:3], strict=True):
        assert (found - wanted).abs().max() <= 2e-5


def fill(policy: Llada2Policy, ids: torch.Tensor, case: dict[str, Any], **changes: Any) -> Any:
    block = case["block_length"]
    num_open = -(-(ids.shape[1] + case["gen_length"]) // block) * block - ids.shape[1]
    if "editing_threshold" in case:
        steps = -(-block // case.get("num_to_transfer", 1))
        changes |= {"editing_threshold": case["editing_threshold"]}
        changes |= {"max_editing_rounds": case.get("max_post_steps", 16)}
    else:
        steps = min(case["steps"], case["gen_length"] // case.get("minimal_topk", 1))
    return sample_ids(
        policy,
        functional.pad(ids, (0, num_open), value=MASK),
        num_denoising_steps=steps * -(-num_open // block),
        block_length=block,
        remasking="low_confidence_dynamic",
        threshold=case["threshold"],
        stop_at_eos=case["eos_id"] >= 0,
        **changes,
    )


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("release", "case"),
    [(release, case) for release in RELEASES for case in cases(release)],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_tokens_equal_the_reference_sampler(release: str, case: dict[str, Any], use_cache: bool) -> None:
    policy = load(release, case["eos_id"] if case["eos_id"] >= 0 else NO_EOS)
    arrays = read(release)
    ids, wanted = arrays[f"in_{case['name']}"], arrays[f"out_{case['name']}"]
    out = fill(policy, ids, case, use_cache=use_cache)
    assert torch.equal(out.token_ids[:, ids.shape[1] :][:, : wanted.shape[1]], wanted)
    assert out.num_forward_rows <= case["forward_calls"]


def test_editing_ends_without_a_mask_where_the_mask_is_the_likeliest_token() -> None:
    """The reference commits the mask token over itself for ever."""
    policy, case = load("llada21_tiny"), cases("llada21_tiny")[0]
    ids = torch.arange(20, 28)[None]
    with torch.no_grad():
        policy.module.lm_head.weight[MASK] = 8 * policy.hidden(ModelInput(token_ids=ids))[0, -1]
    confident = policy.logits(functional.pad(ids, (0, 8), value=MASK))[0, 8:].softmax(-1)
    assert (confident.argmax(-1) == MASK).any()
    out = fill(policy, ids, case)
    assert not (out.token_ids == MASK).any()


def test_no_round_edits_where_none_is_allowed() -> None:
    policy, case = load("llada21_tiny"), {**cases("llada21_tiny")[0], "max_post_steps": 0}
    ids = torch.arange(20, 28)[None]
    never = fill(policy, ids, {**case, "editing_threshold": 1.1})
    plain = fill(policy, ids, {**{k: v for k, v in case.items() if k != "editing_threshold"}, "steps": 8})
    assert torch.equal(never.token_ids, plain.token_ids)
    assert never.num_forward_rows == plain.num_forward_rows


@pytest.mark.parametrize(("key", "value"), [("score_function", "softmax"), ("use_qkv_bias", True)])
def test_config_value_that_is_not_computed_is_named(key: str, value: object) -> None:
    config = json.loads((GOLDEN / "llada2_tiny" / "config.json").read_text())
    with pytest.raises(ValueError, match=f"{key} = {value!r}"):
        Llada2Policy.build(config | {key: value})


def test_lora_targets_leave_out_router_and_routed_experts() -> None:
    targets = load("llada2_tiny").lora_targets
    assert "model.layers.0.attention.query_key_value" in targets
    assert "model.layers.0.mlp.down_proj" in targets
    assert "model.layers.2.mlp.shared_experts.up_proj" in targets
    assert not any(".experts." in name or ".gate." in name for name in targets)
