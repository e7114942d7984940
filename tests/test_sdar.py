"""SDAR: names, logits and tokens of the reference, both layouts, and the learner's doubled row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from unigrpo.models import load_policy
from unigrpo.models.policies.sdar import SdarPolicy
from unigrpo.rollouts import sample_ids
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Message, ModelInput, Prompt

GOLDEN = Path(__file__).parent / "golden" / "sdar_tiny"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())}
OVERWRITTEN = "static_P7_g16_b8_s3"
"""Its sampler commits three tokens where one mask is left, the other two over given tokens of the prompt."""
MASK = 500


@pytest.fixture(scope="module")
def policy() -> SdarPolicy:
    return load_policy(GOLDEN, dtype="float32")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def open_after(ids: torch.Tensor, num_open: int) -> torch.Tensor:
    return functional.pad(ids, (0, num_open), value=MASK)


def test_names_and_shapes_equal_the_released_layout(policy: SdarPolicy) -> None:
    wanted = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in policy.module.state_dict().items()} == wanted


@torch.no_grad()
@pytest.mark.parametrize(("name", "block"), [("block4", 4), ("block8", 8), ("full_bidirectional", 16)])
def test_logits_equal_the_reference(policy: SdarPolicy, arrays: dict, name: str, block: int) -> None:
    found = policy.head(policy.hidden(ModelInput(token_ids=arrays["logits_ids"], block_length=block)))
    assert (found - arrays[f"logits_{name}"]).abs().max() <= 2e-5


@torch.no_grad()
def test_block_length_is_the_configs_own(policy: SdarPolicy, arrays: dict) -> None:
    assert policy.block_length == 4
    assert (policy.logits(arrays["logits_ids"]) - arrays["logits_block4"]).abs().max() <= 2e-5


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", [name for name in CASES if name != OVERWRITTEN])
def test_tokens_equal_the_reference_sampler(policy: SdarPolicy, arrays: dict, name: str, use_cache: bool) -> None:
    case, ids, wanted = CASES[name], arrays[f"in_{name}"], arrays[f"out_{name}"]
    num_open = wanted.shape[1] - ids.shape[1]
    out = sample_ids(
        policy,
        open_after(ids, num_open),
        num_denoising_steps=case["denoising_steps"] * -(-num_open // case["block_length"]),
        block_length=case["block_length"],
        remasking=case["strategy"],
        threshold=case["threshold"],
        use_cache=use_cache,
    )
    assert torch.equal(out.token_ids, wanted)
    assert out.num_forward_rows < case["forward_calls"], "a finished block needs no pass of its own"


def test_given_tokens_stay_where_the_reference_writes_over_its_prompt(policy: SdarPolicy, arrays: dict) -> None:
    ids, wanted = arrays[f"in_{OVERWRITTEN}"], arrays[f"out_{OVERWRITTEN}"]
    assert not torch.equal(wanted[:, :7], ids), "the reference's bug"
    settings = {"num_denoising_steps": 9, "block_length": 8, "remasking": "low_confidence_static"}
    out = sample_ids(policy, open_after(ids, 17), **settings).token_ids
    assert torch.equal(out[:, :7], ids)
    assert out[0, 7] == wanted[0, 7], "drawn before anything was written over"
    continued = sample_ids(policy, open_after(wanted[:, :8], 16), **{**settings, "num_denoising_steps": 6}).token_ids
    assert torch.equal(continued, wanted), "from its broken prompt on it is the same sampler"


@torch.no_grad()
@pytest.mark.parametrize("block", [4, 6])
def test_learner_sees_each_noisy_block_after_clean_ones(policy: SdarPolicy, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 480, (2, 18), generator=generator)
    noisy = torch.where(torch.rand(2, 18, generator=generator) < 0.5, MASK, clean)
    found = policy.hidden(ModelInput(token_ids=noisy, clean_ids=clean, block_length=block))
    assert found.shape == (2, 18, 64)
    for start in range(0, 18, block):
        row = torch.cat((clean[:, :start], noisy[:, start : start + block]), dim=1)
        alone = policy.hidden(ModelInput(token_ids=row, block_length=block))[:, start:]
        torch.testing.assert_close(found[:, start : start + block], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("has_clean", [True, False])
def test_padding_changes_no_result(policy: SdarPolicy, side: str, has_clean: bool) -> None:
    ids = torch.arange(2, 13)[None]
    clean = torch.arange(102, 113)[None] if has_clean else None
    alone = policy.hidden(ModelInput(token_ids=ids, clean_ids=clean))
    width = (5, 0) if side == "left" else (0, 5)
    is_padding = functional.pad(torch.zeros(1, 11, dtype=torch.bool), width, value=True)
    found = policy.hidden(
        ModelInput(
            token_ids=functional.pad(ids, width, value=300),
            clean_ids=None if clean is None else functional.pad(clean, width, value=300),
            is_padding=is_padding,
        )
    )
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[~is_padding], alone[0], atol=1e-5, rtol=0)


def test_a_later_block_reaches_no_earlier_one(policy: SdarPolicy) -> None:
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = policy.module.model.embed_tokens.register_forward_hook(keep)
    hidden = policy.hidden(ModelInput(token_ids=torch.arange(12)[None]))
    handle.remove()
    hidden[0, 5].sum().backward()
    moved = embedded[0].grad.abs().sum(dim=-1)[0]
    assert (moved[:8] > 0).all()
    assert (moved[8:] == 0).all()


def test_lora_targets_are_the_seven_of_each_layer(policy: SdarPolicy) -> None:
    assert len(policy.lora_targets) == 14
    assert policy.lora_targets[0] == "model.layers.0.self_attn.q_proj"


def test_the_end_of_a_turn_is_the_first_id_of_the_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert SdarPolicy.complete_config({"eos_token_id": 9}, tmp_path)["eos_token_id"] == 7
    assert SdarPolicy.complete_config({"eos_token_id": 9}, tmp_path / "none")["eos_token_id"] == 9


MOE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "vocab_size": 30,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "block_size": 4,
    "model_type": "sdar_moe",
}


def test_experts_have_the_names_of_qwen3s_layout_where_the_config_puts_them() -> None:
    with torch.device("meta"):
        names = set(SdarPolicy.build(MOE).state_dict())
    assert "model.layers.0.mlp.gate.weight" in names
    assert "model.layers.2.mlp.experts.3.down_proj.weight" in names
    assert "model.layers.1.mlp.up_proj.weight" in names
    assert not any(name.startswith("model.layers.1.mlp.experts") for name in names)


@torch.no_grad()
def test_experts_equal_a_slow_double_loop_with_renormalized_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = SdarPolicy.build(MOE)
        for parameter in body.parameters():
            parameter.normal_(std=0.5)
    mixture = body.model.layers[0].mlp
    hidden = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    found = mixture(hidden)
    for place in range(5):
        token = hidden[0, place]
        probabilities = torch.softmax(mixture.gate.weight @ token, dim=0)
        chosen = sorted(range(4), key=lambda expert: -float(probabilities[expert]))[:2]
        total = sum(float(probabilities[expert]) for expert in chosen)
        wanted = sum(mixture.experts[expert](token) * float(probabilities[expert]) / total for expert in chosen)
        torch.testing.assert_close(found[0, place], wanted, atol=1e-5, rtol=1e-5)


class OneWord:
    def encode_chat(self, messages: tuple[Message, ...]) -> list[int]:
        return list(range(len(messages[0].text)))


@pytest.mark.parametrize(("length", "stop", "steps"), [(8, 16, 4), (10, 20, 6), (11, 20, 6)])
def test_a_canvas_ends_with_a_block_and_keeps_its_steps_a_block(length: int, stop: int, steps: int) -> None:
    policy = load_policy(GOLDEN, dtype="float32")
    policy.tokenizer = OneWord()  # type: ignore[assignment]
    prompt = Prompt(id="p", kind="reason", messages=(Message(role="user", text="x" * length),))
    canvas = policy.encode(prompt, SamplingSettings(completion_length=8, num_denoising_steps=4))
    (span,) = canvas.open_spans
    assert (span.start, span.stop, span.num_denoising_steps, span.block_length) == (length, stop, steps, 4)
    assert (canvas.token_ids[length:] == MASK).all()
    assert len(canvas.token_ids) == stop
    with pytest.raises(ValueError, match="has blocks of 4"):
        policy.encode(prompt, SamplingSettings(completion_length=8, num_denoising_steps=4, block_length=8))
    with pytest.raises(ValueError, match="does not divide over 2 blocks"):
        policy.encode(prompt, SamplingSettings(completion_length=8, num_denoising_steps=5))
