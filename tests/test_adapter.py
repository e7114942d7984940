"""LoRA: a fresh adapter changes nothing, an off one is the base, a saved one is PEFT's."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.models import adapter, load_policy
from unigrpo.models.policies.llada import LladaPolicy
from unigrpo.settings.policy import LoraSettings

BASE = Path(__file__).parent / "golden" / "mmada_tiny"
IDS = torch.arange(24).view(2, 12)
LORA = LoraSettings(r=4, alpha=10.0)
FIRST = "base_model.model.model.transformer.blocks.0.attn_out.lora_A.weight"


def base() -> LladaPolicy:
    return load_policy(BASE, dtype="float32")


def adapted(seed: int = 0) -> LladaPolicy:
    """Return a policy whose adapter does something."""
    policy = base()
    adapter.add_lora(policy, LORA, seed)
    generator = torch.Generator().manual_seed(5)
    state = {
        name: 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in adapter.adapter_state(policy).items()
    }
    adapter.set_adapter_state(policy, state)
    return policy


@torch.no_grad()
def logits(policy: LladaPolicy) -> torch.Tensor:
    return policy.logits(IDS)


def test_fresh_adapter_is_bit_equal_to_the_base_and_freezes_it() -> None:
    policy = base()
    before = logits(policy)
    adapter.add_lora(policy, LORA, 0)
    assert torch.equal(logits(policy), before)
    trained = [name for name, parameter in policy.module.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 14
    assert all("lora_" in name for name in trained)


def test_global_random_state_is_untouched() -> None:
    policy = base()
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    adapter.add_lora(policy, LORA, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_seed_decides_the_first_weights() -> None:
    first, second, other = (base() for _ in range(3))
    for policy, seed in ((first, 1), (second, 1), (other, 2)):
        adapter.add_lora(policy, LORA, seed)
    states = [adapter.adapter_state(policy) for policy in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][FIRST], states[2][FIRST])
    bound = 1 / np.sqrt(64)
    assert 0.9 * bound < states[0][FIRST].abs().max() <= bound
    assert not any(value.any() for name, value in states[0].items() if "lora_B" in name)


def test_disabled_adapter_is_the_base_bit_by_bit() -> None:
    wanted = logits(base())
    policy = adapted()
    on = logits(policy)
    assert (on - wanted).abs().max() > 0.1
    with adapter.adapter_disabled(policy):
        assert torch.equal(logits(policy), wanted)
    assert torch.equal(logits(policy), on)
    assert all(p.requires_grad for name, p in policy.module.named_parameters() if "lora_" in name)


def test_adapter_is_on_again_after_an_error_inside() -> None:
    policy = adapted()
    on = logits(policy)
    with pytest.raises(KeyError), adapter.adapter_disabled(policy):
        raise KeyError("inside")
    assert torch.equal(logits(policy), on)


def test_adapter_output_equals_the_formula() -> None:
    policy = adapted()
    state = adapter.adapter_state(policy)
    plain = base()
    with torch.no_grad():
        for name in plain.lora_targets:
            down, up = (state[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            plain.module.get_submodule(name).weight += 10.0 / 4 * up @ down
    torch.testing.assert_close(logits(policy), logits(plain), atol=1e-4, rtol=0)


def test_state_is_sorted_copies_and_strict() -> None:
    policy = adapted()
    state = adapter.adapter_state(policy)
    assert list(state) == sorted(state)
    state[FIRST].zero_()
    assert adapter.adapter_state(policy)[FIRST].any(), "the state must be a copy"
    del state[FIRST]
    with pytest.raises(
        ValueError, match=r"1 missing: base_model\.model\.model\.transformer\.blocks\.0\.attn_out\.lora_A"
    ):
        adapter.set_adapter_state(policy, state)
    with pytest.raises(ValueError, match=r"1 misshapen: .*\[4, 3\] \(wanted \[4, 64\]\)"):
        adapter.set_adapter_state(policy, state | {FIRST: torch.zeros(4, 3)})


def test_saved_adapter_is_loaded_by_plain_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    policy = adapted()
    adapter.save_adapter(policy, tmp_path)
    fresh = base()
    PeftModel.from_pretrained(fresh.module, tmp_path)
    assert torch.equal(logits(fresh), logits(policy))
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == BASE.name
    assert content["target_modules"] == sorted(policy.lora_targets)
    assert (content["r"], content["lora_alpha"], content["lora_dropout"]) == (4, 10, 0.0)


def test_adapter_trained_by_plain_peft_is_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    trained = base()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        settings = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        get_peft_model(trained.module, settings).save_pretrained(tmp_path)
    fresh = base()
    adapter.merge_adapter(fresh, tmp_path)
    torch.testing.assert_close(logits(fresh), logits(trained), atol=1e-4, rtol=0)
    assert not hasattr(fresh.module, "peft_config")
    assert not any("lora" in name for name in fresh.module.state_dict())
    adapter.add_lora(fresh, LORA, 0)  # a run goes on from the merged base


def test_misfitting_adapter_names_its_tensors(tmp_path: Path) -> None:
    adapter.save_adapter(adapted(), tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    save_file(state | {FIRST: torch.zeros(4, 3)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"attn_out\.lora_A\.weight \[4, 3\] \(wanted \[4, 64\]\)"):
        adapter.merge_adapter(base(), tmp_path)
    save_file({FIRST.replace("attn_out", "stranger"): torch.zeros(4, 64)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.0\.stranger"):
        adapter.merge_adapter(base(), tmp_path)


def test_kinds_that_are_not_merged_are_refused(tmp_path: Path) -> None:
    adapter.save_adapter(adapted(), tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora"):
        adapter.merge_adapter(base(), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors only"):
        adapter.merge_adapter(base(), tmp_path)


def test_merged_checkpoint_loads_and_says_the_same(tmp_path: Path) -> None:
    policy = adapted()
    on = logits(policy)
    adapter.save_merged(policy, tmp_path)
    assert torch.equal(logits(policy), on), "saving must leave the policy as it is"
    torch.testing.assert_close(logits(load_policy(tmp_path, dtype="float32")), on, atol=1e-4, rtol=0)


def test_full_state_round_trips_and_may_overwrite_its_own_folder(tmp_path: Path) -> None:
    adapter.save_merged(base(), tmp_path)
    policy = load_policy(tmp_path, dtype="float32")
    state = {name: value + 0.01 for name, value in adapter.trainable_state(policy).items()}
    assert len(state) == 2 * 9 + 3
    adapter.set_trainable_state(policy, state)
    changed = logits(policy)
    adapter.save_merged(policy, tmp_path)
    assert torch.equal(logits(policy), changed)
    assert torch.equal(logits(load_policy(tmp_path, dtype="float32")), changed)
    with pytest.raises(ValueError, match="frozen copy as reference"), adapter.adapter_disabled(policy):
        pass


def test_version_is_the_hash_of_names_shapes_types_and_bytes() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]], dtype=torch.int64)}
    digest = hashlib.sha256(b"a [1, 1] torch.int64\n" + np.int64(3).tobytes())
    digest.update(b"b [2] torch.float32\n" + np.array([1, 2], dtype=np.float32).tobytes())
    version = adapter.state_version(state, 7, "adapter")
    assert (version.step, version.kind, version.sha256) == (7, "adapter", digest.hexdigest())
    half = {name: value.bfloat16() for name, value in state.items()}
    assert adapter.state_version(half, 7, "adapter").sha256 != version.sha256


def test_adapter_of_a_bfloat16_base_trains_in_float32() -> None:
    policy = load_policy(BASE)
    before = logits(policy)
    adapter.add_lora(policy, LORA, 0)
    assert {value.dtype for value in adapter.adapter_state(policy).values()} == {torch.float32}
    after = logits(policy)
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, before)


def test_targets_by_short_name_leave_the_head_alone() -> None:
    policy = base()
    adapter.add_lora(policy, LoraSettings(r=2, targets=["ff_out"]), 0)
    assert policy.adapter is not None
    assert policy.adapter.targets == [f"model.transformer.blocks.{index}.ff_out" for index in (0, 1)]
    with pytest.raises(ValueError, match="has an adapter already"):
        adapter.add_lora(policy, LORA, 0)
    with pytest.raises(ValueError, match=r"'qkv', no linear layer; wanted attn_out, ff_out"):
        adapter.add_lora(base(), LoraSettings(targets=["qkv"]), 0)


def test_gradient_reaches_the_adapter_through_checkpointed_blocks() -> None:
    policy = load_policy(BASE, dtype="float32", gradient_checkpointing=True)
    adapter.add_lora(policy, LORA, 0)
    policy.logits(IDS).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in policy.module.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"peft_type": "LORA"}', "has r = None and lora_alpha = None"), ("{", "not JSON"), ("3", "a JSON int")],
)
def test_adapter_without_a_rank_is_named(tmp_path: Path, content: str, message: str) -> None:
    adapter.save_adapter(adapted(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{message}"):
        adapter.merge_adapter(base(), tmp_path)
