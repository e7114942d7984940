"""The decoder body against transformers' Qwen2, Qwen3 and Llama, and its own promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.layers.rotary import RotaryTables, rotate

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
IDS = torch.arange(20).view(2, 10)


def small(*, has_qkv_bias: bool = False, has_qk_norm: bool = False, **changes: Any) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DecoderConfig.from_dict(CONFIG | changes, has_qkv_bias=has_qkv_bias, has_qk_norm=has_qk_norm)
        return Decoder(config)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["all", "causal"])
@pytest.mark.parametrize(
    ("name", "flags", "changes"),
    [
        ("Llama", {}, {"head_dim": 8}),
        ("Qwen2", {"has_qkv_bias": True}, {}),
        ("Qwen3", {"has_qk_norm": True}, {"head_dim": 16}),
        ("Qwen3", {"has_qk_norm": True}, {"head_dim": 16, "tie_word_embeddings": True}),
    ],
)
def test_logits_equal_transformers(name: str, flags: dict[str, bool], changes: dict[str, Any], mask: str) -> None:
    import transformers

    kept = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    rope = {"rope_theta": CONFIG["rope_theta"], "rope_type": "default"}
    config = getattr(transformers, f"{name}Config")(**(kept | changes), rope_parameters=rope)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reference = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    module = small(**flags, **changes)
    state = {key: value for key, value in reference.state_dict().items() if key in module.state_dict()}
    module.load_state_dict(state)
    is_visible = torch.ones(10, 10, dtype=torch.bool) if mask == "all" else torch.ones(10, 10, dtype=torch.bool).tril()
    wide = torch.zeros(10, 10).masked_fill(~is_visible, torch.finfo(torch.float32).min)
    wanted = reference(IDS, attention_mask=wide.expand(2, 1, 10, 10)).logits
    found = module.head(module(IDS, None if mask == "all" else is_visible.expand(2, 1, 10, 10)))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


class Kept:
    """Keys and values of all passes so far."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.layers:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (keys, values), strict=True))
        self.layers[layer] = (keys, values)
        return keys, values


@torch.no_grad()
def test_blocks_through_a_cache_equal_one_pass_under_a_block_causal_mask() -> None:
    module = small(has_qk_norm=True)
    block = torch.arange(10) // 4
    whole = module(IDS, (block[:, None] >= block[None, :])[None, None])
    cache = Kept()
    for start in (0, 4, 8):
        part = slice(start, min(start + 4, 10))
        positions = torch.arange(10)[part].expand(2, -1)
        found = module(IDS[:, part], positions=positions, cache=cache)
        torch.testing.assert_close(found, whole[:, part], atol=1e-5, rtol=0)


@torch.no_grad()
def test_embedded_input_equals_token_ids() -> None:
    module = small()
    assert torch.equal(module(None, embedded=module.model.embed_tokens(IDS)), module(IDS))


@torch.no_grad()
def test_content_of_padding_is_seen_by_nobody() -> None:
    module, other = small(), IDS.clone()
    other[:, 7:] = 39
    is_padding = torch.zeros(2, 10, dtype=torch.bool)
    is_padding[:, 7:] = True
    is_visible = visible_keys(is_padding)
    assert torch.equal(module(IDS, is_visible)[:, :7], module(other, is_visible)[:, :7])
    assert visible_keys(torch.zeros(2, 10, dtype=torch.bool)) is None


def test_checkpointed_gradient_equals_the_plain_one() -> None:
    gradients = []
    for is_checkpointing in (False, True):
        module = small(has_qkv_bias=True)
        module.is_checkpointing = is_checkpointing
        module.head(module(IDS)).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_gradient_flows_after_a_pass_in_inference_mode_and_rounds_alike() -> None:
    module = small()
    with torch.inference_mode():
        silent = module(IDS)
    trained = module(IDS)
    trained.sum().backward()
    assert torch.equal(silent, trained)


@torch.no_grad()
@pytest.mark.parametrize("is_tied", [True, False])
def test_head_over_a_range_equals_those_columns(is_tied: bool) -> None:
    module = small(tie_word_embeddings=is_tied)
    assert ("lm_head.weight" in module.state_dict()) is not is_tied
    hidden = module(IDS)
    torch.testing.assert_close(module.head(hidden, (3, 9)), module.head(hidden)[..., 3:9], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="30:41 is not inside 0:40"):
        module.head(hidden, (30, 41))


def test_rotation_is_by_position_over_wavelength_and_leaves_the_rest() -> None:
    heads = torch.randn(1, 3, 1, 8, generator=torch.Generator().manual_seed(0))
    cos, signed_sin = RotaryTables(4, theta=100.0).first(3, torch.device("cpu"))
    turned = rotate(heads, cos, signed_sin)
    assert torch.equal(turned[..., 4:], heads[..., 4:])
    for position in range(3):
        for pair, wavelength in ((0, 1.0), (1, 10.0)):
            angle = position / wavelength
            first, second = heads[0, position, 0, pair].item(), heads[0, position, 0, pair + 2].item()
            wanted = (
                first * math.cos(angle) - second * math.sin(angle),
                second * math.cos(angle) + first * math.sin(angle),
            )
            assert turned[0, position, 0, [pair, pair + 2]].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type = 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"num_attention_heads": 3}, "a whole number of query heads per key head"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_config_value_that_is_not_computed_is_named(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        DecoderConfig.from_dict(CONFIG | changes)
