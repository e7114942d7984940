"""LaViDa: features, prefix mode, kept prompts, schedules, tokens and complementary losses equal the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from llava_specimens import FROM_PICTURE, IDS, PICTURES, Golden, sampling_of

from unigrpo.models.llava import embed
from unigrpo.models.pictures.tiles import cut_tiles, pool
from unigrpo.models.policies.lavida import prefix_rows
from unigrpo.rollouts import sample
from unigrpo.rollouts.schedules.base import Progress, Schedule
from unigrpo.rollouts.schedules.linear import Linear
from unigrpo.rollouts.schedules.shift import Shift
from unigrpo.rollouts.schedules.sine import Sine
from unigrpo.supervised.rows import NoisyRows, Rows, with_complement
from unigrpo.types import ModelInput

ORDERS = {"margin": "full_margin", "entrophy": "full_entropy"}
SCHEDULES = {"shift": "shift", "cosine": "sine"}
STRICT = (
    "prefix_g16_r1",
    "prefix_g16_r05",
    "prefix_g32_r05_shift",
    "prefix_g32_r025_shift033",
    "prefix_g24_b8_r05",
    "prefix_g16_spb4",
    "prefix_g16_margin",
    "prefix_g16_entrophy",
    "prefix_draft",
    "full_g16_r1",
    "full_g16_b8_r05_cosine",
)
"""Every case; every margin is over 1e-3."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("lavida_tiny")


def grown(golden: Golden, name: str, picture: str) -> ModelInput:
    return golden.policy.grow(golden.tensor(name)[:1], None, [golden.features(picture)])


@torch.no_grad()
def test_pooled_features_equal_the_reference(golden: Golden) -> None:
    model = golden.policy.module.model
    pixels = cut_tiles(golden.picture("wide"), golden.policy.module.vision_encoder.tiles)
    found = pool(model.mm_projector(model.vision_tower.vision_tower(pixels)), 2)
    assert (found - golden.tensor("pooled_wide")).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", PICTURES)
def test_embeddings_and_logits_equal_the_reference(golden: Golden, name: str) -> None:
    policy, prompt = golden.policy, grown(golden, "input_ids", name)
    embedded = embed(policy.module.model.transformer.wte, prompt.token_ids, prompt.image_features)
    assert (embedded - golden.tensor(f"embeds_{name}")).abs().max() <= 1e-5
    assert (policy.head(policy.hidden(prompt)) - golden.tensor(f"logits_{name}")).abs().max() <= 2e-5
    found = policy.logits(golden.tensor("input_ids"), images=[golden.picture(name)])
    assert (found - golden.tensor(f"logits_{name}")).abs().max() <= 2 * FROM_PICTURE


@torch.no_grad()
def test_a_prompt_that_sees_only_itself_equals_the_reference(golden: Golden) -> None:
    policy, prompt = golden.policy, grown(golden, "input_ids", "square")
    length = prompt.token_ids.shape[1]
    ids = torch.cat([prompt.token_ids, golden.tensor("prefix_answer_ids")], dim=1)
    whole = replace(prompt, token_ids=ids)
    prefixed = replace(whole, prompt_lengths=torch.tensor([length]))
    assert (policy.head(policy.hidden(prefixed))[:, length:] - golden.tensor("prefix_logits")).abs().max() <= 2e-5
    assert (policy.head(policy.hidden(whole))[:, length:] - golden.tensor("noprefix_logits")).abs().max() <= 2e-5
    kept = policy.keep_prompts(prefixed)
    values = torch.stack(kept.values).transpose(2, 3)
    assert (values - golden.tensor("prefix_v")).abs().max() <= 1e-5
    answers = policy.hidden_after(prefixed, kept, torch.tensor([0]))
    assert (policy.head(answers) - golden.tensor("prefix_logits")).abs().max() <= 2e-5


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", STRICT)
def test_tokens_equal_the_released_sampler(
    golden: Golden, name: str, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = golden.case(name)
    assert case["min_argmax_margin"] > 3e-5 < case["min_selection_log_gap"]
    monkeypatch.setattr(golden.policy.module, "is_prefix", case["prefix_lm"])
    schedule = {"use": SCHEDULES.get(case.get("schedule"), "linear"), **case.get("schedule_kwargs", {})}
    sampling = sampling_of(
        case, schedule=schedule, remasking=ORDERS.get(case.get("remasking"), "low_confidence"), stop_at_eos=False
    )
    canvas = golden.canvas(golden.arrays[f"in_{name}"][0], [case["image"]], sampling)
    length = case["max_new_tokens"]
    if f"draft_{name}" in golden.arrays:
        ids = np.concatenate([canvas.token_ids[:-length], golden.arrays[f"draft_{name}"][0]])
        canvas = replace(canvas, token_ids=ids)
    out = sample(golden.policy, [canvas], sampling, [0], use_cache=use_cache)
    assert out.token_ids[0, -length:].tolist() == golden.arrays[f"out_{name}"][0, -length:].tolist()
    steps = golden.arrays[f"history_{name}"][:, 0, -length:] != IDS["mask"]
    committed = out.committed_step[0, -length:].numpy()
    used = [step for step in range(sampling.num_denoising_steps) if (committed == step).any()]
    for row, step in enumerate(used):
        assert ((committed <= step) == steps[row]).all(), f"step {step}"


def test_kept_prompts_give_the_tokens_of_recomputed_ones_in_a_mixed_batch(golden: Golden) -> None:
    case = golden.case("prefix_g24_b8_r05")
    ids = golden.arrays["in_prefix_g24_b8_r05"][0]
    sampling = sampling_of(case, temperature=1.0, stop_at_eos=False)
    canvases = [golden.canvas(ids, [name], sampling) for name in ("square", "big", "square", "tall")]
    canvases[2] = canvases[0]
    runs = [sample(golden.policy, canvases, sampling, [1, 2, 3, 4], use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(runs[0].token_ids, runs[1].token_ids)
    assert torch.equal(runs[0].committed_step, runs[1].committed_step)
    assert (runs[0].committed_logprobs - runs[1].committed_logprobs).abs().max() <= 1e-5
    alone = sample(golden.policy, canvases[3:], sampling, [4])
    assert alone.token_ids[0].tolist() == runs[0].token_ids[3, : len(canvases[3].token_ids)].tolist()


def test_equal_prompts_are_computed_once(golden: Golden) -> None:
    prompt = grown(golden, "input_ids", "square")
    length = prompt.token_ids.shape[1]
    rows = replace(prompt, token_ids=prompt.token_ids.repeat(3, 1), prompt_lengths=torch.tensor([length] * 3))
    kept = golden.policy.keep_prompts(rows)
    assert kept is not None
    assert len(kept.keys[0]) == 1 and kept.prompt_of.tolist() == [0, 0, 0]


def test_every_schedule_of_the_table(golden: Golden) -> None:
    table = golden.facts["schedules"]
    assert len(table) == 130
    for key, wanted in table.items():
        name, masked, steps = key.rsplit("_", 2)
        total, num_steps = torch.tensor([int(masked)]), int(steps)
        if name == "none":
            schedule: Schedule = Linear()
        elif name == "cosine":
            schedule = Sine()
        else:
            schedule = Shift(shift=1.0 if name == "linear" else float(name.removeprefix("shift")))
        start = {"num_at_start": total, "num_masked": total, "num_positions": int(masked), "num_steps": num_steps}
        assert [int(schedule.count(Progress(**start, step=step))) for step in range(num_steps)] == wanted, key


def test_a_shifted_schedule_with_more_steps_than_positions_commits_one_a_step() -> None:
    assert Shift().counts(torch.tensor([2, 0]), 4).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_who_sees_whom_in_prefix_mode_by_hand() -> None:
    found = prefix_rows(torch.tensor([2]), 4, None, 0, 4)[0].int().tolist()
    assert found == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert prefix_rows(torch.tensor([2]), 4, None, 1, 3)[0].int().tolist() == found[1:3]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["prefix", "full"])
def test_complementary_training_loss_equals_the_reference(
    golden: Golden, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = golden.policy
    monkeypatch.setattr(policy.module, "is_prefix", mode == "prefix")
    features = policy.module.vision_encoder.features(golden.picture("square"))
    clean = policy.grow(golden.tensor("train_input_ids"), None, [features, features])
    is_masked = golden.tensor(f"train_{mode}_masked")
    num_prompt = clean.token_ids.shape[1] - int((golden.tensor("train_labels_in")[0] != -100).sum())
    is_open = (torch.arange(clean.token_ids.shape[1]) >= num_prompt) & (clean.token_ids != 485)
    rows = Rows(clean_ids=clean.token_ids, is_open=is_open, is_padding=None, keys=torch.arange(2))
    noisy = NoisyRows(
        token_ids=clean.token_ids,
        is_masked=is_masked[:2],
        mask_prob=golden.tensor(f"train_{mode}_p_mask").expand(is_open.shape),
    )
    rows, noisy = with_complement(rows, noisy, IDS["mask"])
    assert torch.equal(noisy.is_masked, is_masked)
    logits = policy.head(
        policy.hidden(
            ModelInput(
                token_ids=noisy.token_ids,
                image_features=clean.image_features,
                prompt_lengths=torch.full((4,), num_prompt),
            )
        )
    )
    assert (logits[is_masked] - golden.tensor(f"train_{mode}_logits_masked")).abs().max() <= 2e-5
    loss = torch.nn.functional.cross_entropy(logits[is_masked], rows.clean_ids[is_masked])
    assert abs(float(loss) - float(golden.arrays[f"train_{mode}_loss"])) <= 1e-5


def test_prompts_that_see_the_answer_are_not_kept(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden.policy.module, "is_prefix", False)
    rows = replace(grown(golden, "input_ids", "square"), prompt_lengths=torch.tensor([5]))
    assert golden.policy.keep_prompts(rows) is None


def test_lora_goes_to_the_language_body_alone(golden: Golden) -> None:
    names = {name for name, _ in golden.policy.module.named_modules()}
    assert len(golden.policy.lora_targets) == 14
    assert set(golden.policy.lora_targets) <= names
