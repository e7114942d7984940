"""The body: golden logits, padding, positions, grouped heads, tying, checkpointing, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from unigrpo.models import load_policy
from unigrpo.models.layers.llada import Llada, LladaConfig
from unigrpo.models.policies.llada import LladaPolicy
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Message, ModelInput, Prompt

GOLDEN = Path(__file__).parent / "golden"
CONFIG = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "mlp_hidden_size": 48,
    "embedding_size": 40,
    "rope_theta": 10000.0,
}


def small(**changes: object) -> Llada:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Llada(LladaConfig.from_dict(CONFIG | changes))


@pytest.fixture(scope="module")
def mmada() -> LladaPolicy:
    return load_policy(GOLDEN / "mmada_tiny", dtype="float32")


@pytest.fixture(scope="module")
def logits() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "mmada_tiny" / "logits.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def test_mmada_logits_equal_the_reference(mmada: LladaPolicy, logits: dict[str, torch.Tensor]) -> None:
    assert (mmada.logits(logits["input_ids"]) - logits["logits_plain"]).abs().max() <= 1e-5


@torch.no_grad()
def test_llada_logits_equal_the_reference() -> None:
    policy = load_policy(GOLDEN / "llada_tiny", dtype="float32")
    with np.load(GOLDEN / "llada_tiny" / "generate.npz") as file:
        ids, wanted = torch.from_numpy(file["logits_ids"]), torch.from_numpy(file["logits"])
    assert (policy.logits(ids) - wanted).abs().max() <= 1e-5


@torch.no_grad()
def test_padded_logits_equal_the_reference_with_a_boolean_mask(
    mmada: LladaPolicy, logits: dict[str, torch.Tensor]
) -> None:
    is_padding = logits["attention_mask"] == 0
    found = mmada.logits(logits["input_ids_pad"], is_padding)
    assert (found - logits["logits_pad_boolbias"])[~is_padding].abs().max() <= 1e-5
    assert (found - logits["logits_pad_float01bias"])[~is_padding].abs().max() > 1.0, "the reference's padding bug"
    assert (found - logits["logits_attention_mask_pad_causal"])[~is_padding].abs().max() > 1.0, "its causal trap"


@torch.no_grad()
def test_hidden_states_equal_the_reference(mmada: LladaPolicy, logits: dict[str, torch.Tensor]) -> None:
    ids = logits["input_ids"]
    transformer = mmada.module.model.transformer
    assert torch.equal(transformer.wte(ids), logits["hidden_emb"])
    after_block: list[torch.Tensor] = []
    handle = transformer.blocks[0].register_forward_hook(lambda _module, _inputs, output: after_block.append(output))
    final = mmada.hidden(ModelInput(token_ids=ids))
    handle.remove()
    assert (after_block[0] - logits["hidden_after_block1"]).abs().max() <= 1e-5
    assert (final - logits["hidden_final_norm"]).abs().max() <= 1e-5


def test_names_and_shapes_equal_the_released_layout(mmada: LladaPolicy) -> None:
    wanted = json.loads((GOLDEN / "mmada_tiny" / "state_dict_keys.json").read_text())
    found = {name: [list(t.shape), str(t.dtype)] for name, t in mmada.module.state_dict().items()}
    assert found == wanted


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_result(mmada: LladaPolicy, side: str) -> None:
    ids = torch.arange(2, 14)[None]
    alone = mmada.hidden(ModelInput(token_ids=ids))
    filler = torch.full((1, 5), 300)
    is_filler = torch.ones(1, 5, dtype=torch.bool)
    order = (filler, ids) if side == "left" else (ids, filler)
    flags = (is_filler, torch.zeros(1, 12, dtype=torch.bool))
    is_padding = torch.cat(flags if side == "left" else flags[::-1], dim=1)
    positions = (torch.cumsum((~is_padding).long(), dim=1) - 1).clamp_min(0)
    padded = mmada.hidden(ModelInput(token_ids=torch.cat(order, dim=1), is_padding=is_padding, positions=positions))
    torch.testing.assert_close(padded[~is_padding], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_content_of_padding_is_seen_by_nobody(mmada: LladaPolicy) -> None:
    ids = torch.arange(2, 14)[None].repeat(2, 1)
    ids[1, 9:] = 77
    is_padding = torch.zeros(2, 12, dtype=torch.bool)
    is_padding[:, 9:] = True
    hidden = mmada.hidden(ModelInput(token_ids=ids, is_padding=is_padding))
    assert torch.equal(hidden[0, :9], hidden[1, :9])


@torch.no_grad()
def test_row_of_padding_alone_is_finite_and_leaves_the_others(mmada: LladaPolicy) -> None:
    ids = torch.arange(24).view(2, 12)
    is_padding = torch.tensor([[False] * 12, [True] * 12])
    hidden = mmada.hidden(ModelInput(token_ids=ids, is_padding=is_padding))
    assert torch.isfinite(hidden).all()
    torch.testing.assert_close(hidden[:1], mmada.hidden(ModelInput(token_ids=ids[:1])), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_without_any_true_is_no_padding(mmada: LladaPolicy) -> None:
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(mmada.logits(ids, torch.zeros(2, 12, dtype=torch.bool)), mmada.logits(ids))


@torch.no_grad()
def test_default_positions_are_counted_from_zero(mmada: LladaPolicy) -> None:
    ids = torch.arange(24).view(2, 12)
    counted = mmada.hidden(ModelInput(token_ids=ids, positions=torch.arange(12).repeat(2, 1)))
    assert torch.equal(counted, mmada.hidden(ModelInput(token_ids=ids)))


@torch.no_grad()
def test_rotary_table_is_the_same_after_a_longer_row(mmada: LladaPolicy) -> None:
    ids = torch.arange(12)[None]
    before = mmada.logits(ids)
    mmada.logits(torch.zeros(1, 700, dtype=torch.int64))
    assert torch.equal(mmada.logits(ids), before)


def test_gradient_flows_after_a_pass_in_inference_mode() -> None:
    module = small()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        silent = module(ids)
    trained = module(ids)
    trained.sum().backward()
    assert torch.equal(silent, trained), "old log-probs and the policy's must agree bit by bit"
    assert all(parameter.grad is not None for parameter in module.model.transformer.blocks.parameters())


@torch.no_grad()
def test_head_slice_equals_columns_of_all_logits(mmada: LladaPolicy) -> None:
    hidden = mmada.hidden(ModelInput(token_ids=torch.arange(24).view(2, 12)))
    torch.testing.assert_close(mmada.head(hidden, (505, 633)), mmada.head(hidden)[..., 505:633], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"505:700 is not inside 0:640"):
        mmada.head(hidden, (505, 700))


def test_checkpointed_gradient_equals_the_plain_one() -> None:
    gradients = []
    for is_checkpointing in (False, True):
        module = small()
        module.is_checkpointing = is_checkpointing
        module.head(module(torch.arange(20).view(2, 10))).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@torch.no_grad()
def test_grouped_key_heads_equal_repeated_ones() -> None:
    grouped, full = small(n_kv_heads=2), small()
    state = grouped.state_dict()
    for name in list(state):
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(state)
    ids = torch.arange(20).view(2, 10)
    torch.testing.assert_close(grouped(ids), full(ids), atol=1e-6, rtol=0)


@torch.no_grad()
def test_tied_head_is_the_embedding() -> None:
    tied = small(weight_tying=True)
    assert "model.transformer.ff_out.weight" not in tied.state_dict()
    hidden = tied(torch.arange(10)[None])
    weight = tied.model.transformer.wte.weight
    assert torch.equal(tied.head(hidden), functional.linear(hidden, weight))
    torch.testing.assert_close(tied.head(hidden, (3, 9)), tied.head(hidden)[..., 3:9], atol=1e-4, rtol=0)


@torch.no_grad()
def test_bfloat16_stays_near_float32(mmada: LladaPolicy) -> None:
    half = load_policy(GOLDEN / "mmada_tiny")
    hidden = half.hidden(ModelInput(token_ids=torch.arange(24).view(2, 12)))
    assert hidden.dtype == torch.bfloat16
    wanted = mmada.hidden(ModelInput(token_ids=torch.arange(24).view(2, 12)))
    assert (hidden.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean() + 0.02


def test_lora_targets_are_seven_a_block_without_the_head(mmada: LladaPolicy) -> None:
    linears = {name for name, layer in mmada.module.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert len(mmada.lora_targets) == 14
    assert linears - set(mmada.lora_targets) == {"model.transformer.ff_out"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("include_bias", True),
        ("block_type", "sequential"),
        ("rope", False),
        ("attention_dropout", 0.1),
    ],
)
def test_config_value_that_is_not_computed_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key} = {value!r}"):
        LladaConfig.from_dict(CONFIG | {key: value})


def test_config_without_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks d_model, n_layers, n_heads"):
        LladaConfig.from_dict({"embedding_size": 10})
    with pytest.raises(ValueError, match="n_heads 3"):
        LladaConfig.from_dict(CONFIG | {"n_heads": 3})


def test_text_policy_refuses_pictures() -> None:
    policy = load_policy(GOLDEN / "llada_tiny", dtype="float32")
    prompt = Prompt(id="p", kind="imagine", messages=(Message(role="user", text="a cat"),))
    with pytest.raises(ValueError, match="MMaDA and Show-o write"):
        policy.encode(prompt, SamplingSettings(completion_length=4, num_denoising_steps=4))
    with pytest.raises(ValueError, match="takes token ids only"):
        policy.decode_text(np.array([1, 2]))


def test_inside_a_range_the_mask_token_has_no_probability_and_the_others_keep_their_logits() -> None:
    policy = load_policy(GOLDEN / "llada_tiny", dtype="float32", vocabulary={"mask_token_id": 500})
    hidden = policy.hidden(ModelInput(token_ids=torch.arange(12).view(1, 12))).detach().requires_grad_()
    ranged, whole = policy.head(hidden, (490, 512)), policy.head(hidden)
    others = [index for index in range(22) if index != 10]
    assert torch.allclose(ranged[..., others], whole[..., 490:512][..., others], atol=1e-5)
    assert (ranged.softmax(-1)[..., 10] == 0).all()
    ranged.log_softmax(-1)[..., others].sum().backward()
    assert torch.isfinite(hidden.grad).all()
