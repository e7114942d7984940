"""DiffusionGemma against its reference: logits, caches, tokens of recorded noise; padding, keyed noise, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from unigrpo.models import load_policy
from unigrpo.models.base import UniformSampling
from unigrpo.models.policies.diffusion_gemma import DiffusionGemmaPolicy, block_sampling
from unigrpo.rollouts import sample_ids
from unigrpo.rollouts.engines.entropy_bound import EntropyBound, accept, entropies
from unigrpo.rollouts.layout import layout_of_ids
from unigrpo.rollouts.state import SamplerState
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import ModelInput

GOLDEN = Path(__file__).parent / "golden" / "diffusion_gemma_tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
MARK = 4


@pytest.fixture(scope="module")
def shared() -> DiffusionGemmaPolicy:
    policy = load_policy(GOLDEN, dtype="float32")
    assert isinstance(policy, DiffusionGemmaPolicy)
    assert policy.abilities.corruption == "uniform"
    return policy


@pytest.fixture
def policy(shared: DiffusionGemmaPolicy) -> DiffusionGemmaPolicy:
    shared.block_sampling = UniformSampling(entropy_bound=4.0)
    return shared


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def test_logits_of_prompt_and_canvas_equal_the_reference(
    policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]
) -> None:
    ids, canvas = golden["ids"], golden["canvas"]
    row = torch.cat([ids, canvas], dim=1)
    hidden = policy.hidden(ModelInput(token_ids=row))
    assert (hidden[:, :13] - golden["encoder_last_hidden_state"]).abs().max() <= 2e-5
    assert (policy.head(hidden[:, 13:]) - golden["logits"]).abs().max() <= 2e-5
    assert (policy.head(hidden[:, 13:], (5, 90)) - golden["logits"][..., 5:90]).abs().max() <= 2e-5


def test_what_the_encoder_keeps_equals_the_reference(
    policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]
) -> None:
    kept = policy.read(golden["ids"])
    for index, layer in enumerate(kept.cache.layers):
        assert (layer.keys - golden[f"cache_k{index}"]).abs().max() <= 2e-5
        assert (layer.values - golden[f"cache_v{index}"]).abs().max() <= 2e-5
    assert kept.cache.layers[0].keys.shape[2] == 7, "a sliding layer keeps its window less one"


def test_logits_of_the_step_before_condition_the_next(
    policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]
) -> None:
    kept = policy.read(golden["ids"])
    found = policy.denoise(golden["canvas"], kept, golden["sc_logits"])
    assert (found - golden["logits_selfcond"]).abs().max() <= 2e-5
    assert (policy.denoise(golden["canvas"], kept, None) - golden["logits"]).abs().max() <= 2e-5, "nothing was written"


def test_left_padding_equals_the_reference(policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]) -> None:
    is_padding = golden["attention_mask"] == 0
    found = policy.denoise(golden["canvas"], policy.read(golden["ids"], is_padding), None)
    assert is_padding[1].sum() == 4
    assert (found - golden["logits_leftpad"]).abs().max() <= 2e-5


@dataclass
class Recorded:
    """The reference's own draws, in its order: a start, then one set of random ids after every step."""

    random: torch.Tensor
    drawn: torch.Tensor
    num_steps: int
    is_greedy: bool
    entropy: list[torch.Tensor]

    def random_ids(self, canvas: int, step: int) -> torch.Tensor:
        return self.random[canvas * (self.num_steps + 1) + step - canvas * self.num_steps]

    def sample(self, canvas: int, step: int, logits: torch.Tensor) -> torch.Tensor:
        self.entropy.append(entropies(logits))
        if self.is_greedy:
            assert torch.equal(logits.argmax(-1), self.drawn[step])
        return self.drawn[step]


def state_of(
    policy: DiffusionGemmaPolicy, ids: torch.Tensor, num_open: int, num_steps: int, **changes: Any
) -> SamplerState:
    row = torch.cat([ids, torch.full((len(ids), num_open), MARK)], dim=1)
    is_padding = changes.pop("is_padding", None)
    if is_padding is not None:
        is_padding = torch.nn.functional.pad(is_padding, (0, num_open))
    sampling = SamplingSettings(
        completion_length=num_open,
        num_denoising_steps=num_steps,
        **{"temperature": 0.0, "stop_at_eos": False} | changes,
    )
    layout = layout_of_ids(row, policy.vocabulary, sampling, is_padding=is_padding)
    return SamplerState(policy, layout, torch.arange(len(ids)), sampling)


def replayed(
    case: dict[str, Any], policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our ids of a case, and the entropies of every step."""
    name, num_steps, num_open = case["name"], case["max_denoising_steps"], case["max_new_tokens"]
    policy.block_sampling = UniformSampling(
        entropy_bound=case["sampler_config"],
        lowest_temperature=case["t_min"],
        highest_temperature=case["t_max"],
        stability_threshold=case["stability_threshold"],
        confidence_threshold=case["confidence_threshold"],
    )
    is_padding = golden[f"mask_{name}"] == 0 if f"mask_{name}" in golden else None
    is_ended = case["eos_token_id"] < 512
    policy.vocabulary = replace(policy.vocabulary, eos_token_id=case["eos_token_id"] if is_ended else 1)
    num_blocks = -(-num_open // 8)
    state = state_of(
        policy, golden[f"in_{name}"], num_open, num_steps * num_blocks, is_padding=is_padding, stop_at_eos=is_ended
    )
    record = Recorded(golden[f"rnd_{name}"], golden[f"den_{name}"], num_steps, case["greedy"], [])
    EntropyBound(state, policy, record).fill()
    return state.ids, torch.stack(record.entropy)


CHAOTIC = "seeded_b1_defaults_bound"
"""Its logits feed back twelve times at temperatures down to 0.43, which multiplies a rounding difference by about five
a step: transformers' own loop does not give the stored tokens on another machine. Two of its experts are 2.3e-5 apart
in probability, less than the 3e-5 from which on a case is strict."""


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] != CHAOTIC], ids=lambda case: case["name"])
def test_tokens_of_recorded_noise_equal_the_reference(
    case: dict[str, Any], policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]
) -> None:
    # Two experts may lie 3.1e-5 apart in probability; tokens, acceptance and stopping have margins of 5e-4 and more.
    name, eos, wanted = case["name"], case["eos_token_id"], golden[f"out_{case['name']}"]
    assert min(case["min_argmax_margin"], case["min_acceptance_margin"], case["min_confidence_stop_margin"]) > 5e-4
    assert case["min_routing_gap"] > 3e-5
    found, entropy = replayed(case, policy, golden)
    assert len(entropy) == case["decoder_calls"], "stops when the reference does"
    # Nothing has been fed back in the first step; from then on rounding grows, and acceptance and tokens decide.
    torch.testing.assert_close(entropy[0], golden[f"ent_{name}"][0], atol=2e-5, rtol=0)
    torch.testing.assert_close(entropy, golden[f"ent_{name}"], atol=1e-2, rtol=0)
    assert torch.equal(accept(entropy.flatten(0, 1), case["sampler_config"]), golden[f"acc_{name}"].flatten(0, 1))
    if eos < 512:  # after the first EOS ours is EOS, to the end of the span; theirs is padding, to the canvas's end
        first = int((wanted[0] == eos).nonzero()[0])
        assert torch.equal(found[:, : first + 1], wanted[:, : first + 1])
        assert (found[:, first:] == eos).all()
        assert (wanted[:, first + 1 :] == 0).all()
    else:  # theirs is a whole number of canvases
        assert torch.equal(found, wanted[:, : found.shape[1]])


def test_first_steps_of_the_chaotic_case_have_the_references_entropies(
    policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor]
) -> None:
    _, entropy = replayed(next(case for case in CASES if case["name"] == CHAOTIC), policy, golden)
    difference = (entropy - golden[f"ent_{CHAOTIC}"]).abs().amax(dim=(1, 2))
    assert difference[0] < 2e-5
    assert difference[:4].max() < 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tokens_equal_those_of_transformers_own_loop_in_this_process(
    case: dict[str, Any], policy: DiffusionGemmaPolicy, golden: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as reference

    name = case["name"]
    random, drawn = iter(golden[f"rnd_{name}"]), iter(golden[f"den_{name}"])
    sampler = reference.EntropyBoundSampler
    monkeypatch.setattr(sampler, "initialize_canvas", lambda _self, batch_size, device: next(random).clone())
    monkeypatch.setattr(torch, "multinomial", lambda probs, num_samples: next(drawn).reshape(-1, 1).clone())
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)  # it imports the compiler
    padding = {"attention_mask": golden[f"mask_{name}"]} if f"mask_{name}" in golden else {}
    wanted = policy.module.generate(
        golden[f"in_{name}"].clone(),
        sampler_config=reference.EntropyBoundSamplerConfig(case["sampler_config"]),
        **{
            key: case[key]
            for key in (
                "max_new_tokens",
                "max_denoising_steps",
                "t_min",
                "t_max",
                "stability_threshold",
                "confidence_threshold",
                "eos_token_id",
                "pad_token_id",
            )
        },
        **padding,
    ).sequences
    found, _ = replayed(case, policy, golden)
    width = min(found.shape[1], wanted.shape[1])  # ours ends with the span, theirs with the last canvas begun
    found, wanted = found[:, :width], wanted[:, :width]
    is_ended = (wanted == 0) & (found == case["eos_token_id"])
    assert torch.equal(found[~is_ended], wanted[~is_ended])
    assert bool(is_ended.any()) == (case["eos_token_id"] < 512)


def test_only_surest_positions_within_the_bound_are_accepted() -> None:
    entropy = torch.tensor([[0.5, 0.1, 0.3, 0.05], [2.0, 3.0, 4.0, 5.0]])
    # Ascending 0.05, 0.1, 0.3, 0.5 with sums before each of 0, 0.05, 0.15, 0.45; the surest is accepted in any case.
    assert accept(entropy, 0.15).tolist() == [[False, True, True, True], [True, False, False, False]]
    uniform = torch.zeros(1, 1, 8)
    torch.testing.assert_close(entropies(uniform), torch.full((1, 1), float(np.log(8))))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_depend_on_their_own_seed_and_neither_on_neighbors_nor_on_padding(
    policy: DiffusionGemmaPolicy, temperature: float
) -> None:
    ids = torch.randint(8, 500, (3, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([ids, torch.full((3, 12), MARK)], dim=1)
    settings = {"num_denoising_steps": 6, "temperature": temperature, "vocabulary_range": (0, 480)}
    out = sample_ids(policy, rows, seeds=[5, 6, 7], **settings)
    assert not (out.token_ids == MARK).any()
    assert torch.equal(out.token_ids[:, :9], ids)
    assert (out.token_ids[:, 9:] < 480).all()
    assert (out.committed_step[:, 9:] >= 0).all()
    assert (out.committed_step[:, :9] == -1).all()
    assert (out.committed_logprobs[:, 9:] < 0).all()
    assert out.num_forward_rows == 3 * 6
    for row in range(3):
        alone = sample_ids(policy, rows[row : row + 1], seeds=[5 + row], **settings)
        assert torch.equal(alone.token_ids[0], out.token_ids[row])
    is_padding = torch.zeros(3, 24, dtype=torch.bool)
    is_padding[:, :3] = True
    padded = torch.cat([torch.full((3, 3), 77), rows], dim=1)
    found = sample_ids(policy, padded, is_padding=is_padding, seeds=[5, 6, 7], **settings)
    assert torch.equal(found.token_ids[:, 3:], out.token_ids)
    others = sample_ids(policy, rows, seeds=[8, 9, 10], **settings)
    assert torch.equal(others.token_ids, out.token_ids) == (temperature == 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_hidden_state(policy: DiffusionGemmaPolicy, side: str) -> None:
    ids = torch.arange(20, 40)[None]
    alone = policy.hidden(ModelInput(token_ids=ids))
    is_padding = torch.zeros(2, 25, dtype=torch.bool)
    is_padding[:, slice(0, 5) if side == "left" else slice(20, None)] = True
    batch = torch.full((2, 25), 99)
    batch[~is_padding] = ids.repeat(2, 1).flatten()
    found = policy.hidden(ModelInput(token_ids=batch, is_padding=is_padding))
    torch.testing.assert_close(found[0, ~is_padding[0]], alone[0], atol=2e-5, rtol=0)


def test_stored_names_are_the_released_ones_and_shared_weights_are_one(policy: DiffusionGemmaPolicy) -> None:
    wanted = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    with safe_open(GOLDEN / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(wanted)
    state = policy.module.state_dict()
    assert {name: list(state[name].shape) for name in wanted} == wanted
    model = policy.module.model
    assert model.encoder.language_model.embed_tokens.weight is policy.module.lm_head.weight
    assert (
        model.encoder.language_model.layers[0].self_attn.q_proj.weight
        is model.decoder.layers[0].self_attn.q_proj.weight
    )


def test_the_learner_is_refused_with_the_reason(policy: DiffusionGemmaPolicy) -> None:
    assert policy.abilities.corruption == "uniform"
    assert policy.abilities.trained == ()
    assert policy.abilities.untrained == ("reason", "understand", "imagine")
    assert "random ids" in policy.abilities.why_untrained


def test_what_it_cannot_fill_is_refused(policy: DiffusionGemmaPolicy) -> None:
    rows = torch.cat([torch.full((1, 4), 9), torch.full((1, 16), MARK)], dim=1)
    with pytest.raises(ValueError, match="do not divide over 2 blocks"):
        sample_ids(policy, rows, num_denoising_steps=3)
    with pytest.raises(ValueError, match="without guidance"):
        sample_ids(policy, rows, num_denoising_steps=4, guidance_scale=1.0)
    rows[0, 18:] = 9
    with pytest.raises(ValueError, match="at a row's end only"):
        sample_ids(policy, rows, num_denoising_steps=4)
    with pytest.raises(ValueError, match="no prompt to read"):
        sample_ids(policy, torch.full((1, 8), MARK), num_denoising_steps=4)


def test_settings_of_the_sampler_come_from_the_checkpoint() -> None:
    values = {
        "t_min": 0.2,
        "t_max": None,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 2.0},
    }
    assert block_sampling(values) == UniformSampling(entropy_bound=2.0, lowest_temperature=0.2)
    assert block_sampling({}) == UniformSampling()
    with pytest.raises(ValueError, match="OtherSampler"):
        block_sampling({"sampler_config": {"_cls_name": "OtherSampler"}})
