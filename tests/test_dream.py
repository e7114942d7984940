"""Dream against its reference implementation: logits with the shift by one, padding, names, adapter targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.models.layers.shift import predicting_positions
from unigrpo.models.policies.dream import DreamPolicy
from unigrpo.settings.policy import LoraSettings
from unigrpo.types import ModelInput

GOLDEN = Path(__file__).parent / "golden" / "dream_tiny"


@pytest.fixture(scope="module")
def dream() -> DreamPolicy:
    policy = load_policy(GOLDEN, dtype="float32")
    assert isinstance(policy, DreamPolicy)
    return policy


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def test_logits_equal_the_reference_moved_right_by_one(dream: DreamPolicy, golden: dict[str, torch.Tensor]) -> None:
    found = dream.logits(golden["logits_ids"])
    assert (found - golden["logits_shifted"]).abs().max() <= 2e-5
    assert torch.equal(golden["logits_shifted"][:, 1:], golden["logits_raw"][:, :-1])


@torch.no_grad()
def test_output_of_the_body_equals_the_reference(dream: DreamPolicy, golden: dict[str, torch.Tensor]) -> None:
    raw = dream.module.head(dream.module(golden["logits_ids"]))
    assert (raw - golden["logits_raw"]).abs().max() <= 2e-5


def test_names_and_shapes_equal_the_released_layout(dream: DreamPolicy) -> None:
    wanted = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in dream.module.state_dict().items()} == wanted


def test_ids_come_from_the_config(dream: DreamPolicy) -> None:
    ids = dream.vocabulary
    assert (ids.size, ids.mask_token_id, ids.eos_token_id, ids.pad_token_id) == (512, 500, 490, 490)


def padded(ids: torch.Tensor, left: int, right: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    is_padding = torch.tensor([[True] * left + [False] * ids.shape[1] + [True] * right])
    token_ids = torch.full(is_padding.shape, filler)
    token_ids[~is_padding] = ids[0]
    return token_ids, is_padding


@torch.no_grad()
@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 4)])
def test_padding_changes_no_result(dream: DreamPolicy, left: int, right: int) -> None:
    ids = torch.arange(2, 14)[None]
    token_ids, is_padding = padded(ids, left, right, filler=300)
    torch.testing.assert_close(
        dream.logits(token_ids, is_padding)[~is_padding], dream.logits(ids)[0], atol=2e-5, rtol=0
    )


@torch.no_grad()
def test_content_of_padding_is_seen_by_nobody(dream: DreamPolicy) -> None:
    ids = torch.arange(2, 14)[None]
    first, is_padding = padded(ids, 3, 4, filler=300)
    second, _ = padded(ids, 3, 4, filler=7)
    assert torch.equal(dream.logits(first, is_padding)[~is_padding], dream.logits(second, is_padding)[~is_padding])


@torch.no_grad()
def test_row_of_padding_alone_is_finite_and_leaves_the_others(dream: DreamPolicy) -> None:
    ids = torch.arange(24).view(2, 12)
    is_padding = torch.tensor([[False] * 12, [True] * 12])
    logits = dream.logits(ids, is_padding)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:1], dream.logits(ids[:1]), atol=2e-5, rtol=0)


def test_each_position_is_predicted_by_the_last_before_it_that_is_no_padding() -> None:
    flags = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    wanted = [[0, 0, 1, 2], [0, 1, 2, 2], [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]]
    assert predicting_positions(flags).tolist() == wanted


@torch.no_grad()
def test_bfloat16_stays_near_float32(dream: DreamPolicy) -> None:
    half = load_policy(GOLDEN).hidden(ModelInput(token_ids=torch.arange(24).view(2, 12)))
    wanted = dream.hidden(ModelInput(token_ids=torch.arange(24).view(2, 12)))
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean() + 0.02


def test_adapter_sits_on_seven_layers_a_block_and_starts_as_the_base() -> None:
    from unigrpo.models.adapter import add_lora

    policy = load_policy(GOLDEN, dtype="float32")
    ids = torch.arange(24).view(2, 12)
    before, targets = policy.logits(ids), policy.lora_targets
    assert len(targets) == 14
    linears = {name for name, layer in policy.module.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert linears - set(targets) == {"lm_head"}
    add_lora(policy, LoraSettings(), seed=0)
    assert policy.lora_targets == targets
    after = policy.logits(ids)
    assert torch.equal(after, before)
    after.square().sum().backward()
    trained = {name: parameter for name, parameter in policy.module.named_parameters() if parameter.requires_grad}
    assert len(trained) == 28
    assert all(float(parameter.grad.abs().max()) > 0 for name, parameter in trained.items() if "lora_B" in name)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_saved_adapter_loads_in_plain_peft_on_the_class_that_has_its_names(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from unigrpo.models.adapter import add_lora, save_adapter

    policy = load_policy(GOLDEN, dtype="float32")
    weights = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    for number, (name, parameter) in enumerate(policy.module.named_parameters()):
        if "lora_B" in name:
            parameter.fill_(0.01 * (1 + number % 3))
    save_adapter(policy, tmp_path)
    config = json.loads((GOLDEN / "config.json").read_text()) | {"model_type": "qwen2"}
    for name in ("rope_theta", "rope_scaling"):
        del config[name]
    rope = {"rope_theta": 1000000.0, "rope_type": "default"}
    with torch.random.fork_rng():
        reference = Qwen2ForCausalLM(Qwen2Config(**config, rope_parameters=rope)).eval()
    reference.load_state_dict(weights)
    ids = torch.arange(24).view(2, 12)
    everyone = torch.zeros(2, 1, 12, 12)
    loaded = PeftModel.from_pretrained(reference, str(tmp_path))
    found = loaded(ids, attention_mask=everyone).logits
    wanted = policy.module.head(policy.module(ids))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    with loaded.disable_adapter():
        assert (loaded(ids, attention_mask=everyone).logits - wanted).abs().max() > 0.01
