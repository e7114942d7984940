"""LLaDA-MoE against its reference: logits, tokens, names; padding, neighbours, adapters, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora
from unigrpo.models.families import policy_family
from unigrpo.models.layers.experts import ExpertMixture
from unigrpo.models.policies.llada_moe import LladaMoePolicy
from unigrpo.rollouts import sample_ids
from unigrpo.settings.policy import LoraSettings
from unigrpo.types import ModelInput

GOLDEN = Path(__file__).parent / "golden" / "lladamoe_tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
CONFIG = json.loads((GOLDEN / "config.json").read_text())
MASK = 500


@pytest.fixture(scope="module")
def policy() -> LladaMoePolicy:
    loaded = load_policy(GOLDEN, dtype="float32", vocabulary={"mask_token_id": MASK})
    assert isinstance(loaded, LladaMoePolicy)
    return loaded


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def test_logits_equal_the_reference(policy: LladaMoePolicy, golden: dict[str, torch.Tensor]) -> None:
    assert (policy.logits(golden["logits_ids"]) - golden["logits"]).abs().max() <= 2e-5


@torch.no_grad()
def test_padded_logits_equal_the_reference(policy: LladaMoePolicy, golden: dict[str, torch.Tensor]) -> None:
    is_padding = golden["logits_attention_mask"] == 0
    assert is_padding.any()
    found = policy.logits(golden["logits_ids"], is_padding)
    assert (found - golden["logits_masked"])[~is_padding].abs().max() <= 2e-5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_greedy_tokens_equal_the_reference(
    case: dict[str, float], policy: LladaMoePolicy, golden: dict[str, torch.Tensor]
) -> None:
    # Tokens and order have margins of 3e-3 and more. Two experts may lie 1.1e-5 apart in probability: ten times the
    # rounding of float32, and still not enough to be sure of on other hardware.
    assert min(case["min_argmax_margin"], case["min_selection_log_gap"]) > 3e-3
    assert case["min_routing_gap"] > 1e-5
    prompt = golden[f"in_{case['name']}"]
    ids = torch.cat([prompt, torch.full((1, case["gen_length"]), MASK)], dim=1)
    out = sample_ids(policy, ids, num_denoising_steps=case["steps"], block_length=case["block_length"])
    assert torch.equal(out.token_ids, golden[f"out_{case['name']}"])


def test_names_and_shapes_equal_the_released_layout(policy: LladaMoePolicy) -> None:
    wanted = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in policy.module.state_dict().items()} == wanted


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbors_change_no_row(policy: LladaMoePolicy, side: str) -> None:
    ids = torch.arange(2, 14)[None]
    alone = policy.hidden(ModelInput(token_ids=ids))
    is_padding = torch.zeros(3, 17, dtype=torch.bool)
    is_padding[0, slice(0, 5) if side == "left" else slice(12, 17)] = True
    batch = torch.arange(51).view(3, 17) * 9
    batch[0, ~is_padding[0]] = ids[0]
    found = policy.hidden(ModelInput(token_ids=batch, is_padding=is_padding))
    torch.testing.assert_close(found[0, ~is_padding[0]], alone[0], atol=2e-5, rtol=0)


def test_adapter_starts_as_the_base_and_every_target_gets_a_gradient() -> None:
    policy = load_policy(GOLDEN, dtype="float32", vocabulary={"mask_token_id": MASK}, gradient_checkpointing=True)
    ids = torch.arange(24).view(2, 12) * 7
    base = policy.logits(ids).detach()
    add_lora(policy, LoraSettings(r=2, alpha=4), seed=0)
    assert torch.equal(policy.logits(ids), base)
    assert len(policy.lora_targets) == 3 * 4
    policy.logits(ids).square().mean().backward()
    trained = {name: weight for name, weight in policy.module.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 12
    for name, weight in trained.items():
        assert weight.grad is not None, name
        if "lora_B" in name:
            assert weight.grad.abs().max() > 0, name


def test_gradient_reaches_router_and_chosen_experts() -> None:
    policy = load_policy(GOLDEN, dtype="float32", vocabulary={"mask_token_id": MASK})
    policy.logits(torch.arange(64).view(2, 32) * 7).square().mean().backward()
    for layer in policy.module.model.layers:
        assert layer.mlp.gate.weight.grad.abs().max() > 0
        assert sum(expert.up_proj.weight.grad is not None for expert in layer.mlp.experts) >= 12


def test_bfloat16_keeps_most_greedy_choices(policy: LladaMoePolicy, golden: dict[str, torch.Tensor]) -> None:
    half = load_policy(GOLDEN, vocabulary={"mask_token_id": MASK})
    found = half.logits(golden["logits_ids"])
    assert found.dtype == torch.bfloat16
    assert (found.argmax(-1) == golden["logits"].argmax(-1)).float().mean() > 0.8


def test_dense_layers_stand_where_the_config_says() -> None:
    with torch.device("meta"):
        module = LladaMoePolicy.build(CONFIG | {"moe_layer_freq": [0, 1, 1]})
    assert [isinstance(layer.mlp, ExpertMixture) for layer in module.model.layers] == [False, True, True]
    assert tuple(module.model.layers[0].mlp.up_proj.weight.shape) == (96, 64)
    linears = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert len([name for name in linears if ".layers." in name and ".experts." not in name]) == 3 * 4 + 3


def test_architecture_decides_where_the_config_has_the_model_type_of_llada() -> None:
    assert policy_family(CONFIG | {"model_type": "llada"}) is LladaMoePolicy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob = True"),
        ({"shared_expert_intermediate_size": 32}, "shared_expert_intermediate_size = 32"),
        ({"num_experts": None}, "lacks num_experts"),
        ({"moe_layer_freq": [1]}, "for 1 of 3 layers"),
        ({"num_experts_per_tok": 17}, "17 experts a token of 16"),
    ],
)
def test_values_that_are_not_computed_are_refused(changes: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        LladaMoePolicy.build(CONFIG | changes)
