"""Show-o against its reference: logits under its omni-attention, pictures, answers, names; padding, learning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import clipped_loss
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from unigrpo.learner.batch import collate
from unigrpo.learner.learner import Learner
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora, save_merged
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.models.policies.showo import ShowoPolicy, omni_visible
from unigrpo.rollouts import sample, sample_ids
from unigrpo.rollouts.schedules.base import Progress
from unigrpo.rollouts.schedules.cosine import Cosine
from unigrpo.rollouts.units import generate, plan_units
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Message, ModelInput, PolicyVersion, Prompt, Span

GOLDEN = Path(__file__).parent / "golden" / "showo_tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
CONFIG = json.loads((GOLDEN / "config.json").read_text())
PAD, MASK, CODES = 200, 274, (210, 274)
GREEDY = [case for case in CASES if case["temperature"] == 0]
MARKS = {"soi": 201, "eoi": 202, "t2i": 205, "mmu": 206}


class FakeCodec:
    """Four codes a picture, by its first pixel."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels[:, 0, 0, :1] > 0).long() * torch.arange(1, 5)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(codes), 3, 8, 8)


def words() -> TextTokenizer:
    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(200)}, unk_token="w199"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return TextTokenizer(tokenizer)


def load(**changes: object) -> ShowoPolicy:
    policy = load_policy(
        GOLDEN, dtype="float32", tokenizer=words(), image_tokenizer=FakeCodec(), image_size=16, **changes
    )
    assert isinstance(policy, ShowoPolicy)
    return policy


@pytest.fixture(scope="module")
def policy() -> ShowoPolicy:
    return load()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("name", ["logits", "mmu", "lm", "train"])
@torch.no_grad()
def test_logits_and_who_sees_whom_equal_the_reference(
    name: str, policy: ShowoPolicy, golden: dict[str, torch.Tensor]
) -> None:
    ids = golden[f"{name}_ids"]
    wanted = golden["logits" if name == "logits" else f"{name}_logits"]
    is_padding = ids == PAD
    is_visible = omni_visible(ids, is_padding, **MARKS)
    is_pair = ~is_padding[:, :, None] & ~is_padding[:, None, :]
    assert torch.equal(is_visible[:, 0][is_pair], golden[f"{name}_allowed"][is_pair])
    assert not is_visible[:, 0][~is_padding[:, :, None] & is_padding[:, None, :]].any()
    found = policy.module.head(policy.module(ids, is_visible))
    assert (found - wanted)[~is_padding].abs().max() <= 2e-5
    # What the policy gives: rows that write a picture as they are, rows of text moved by one.
    is_picture = (ids == MARKS["t2i"]).any(1)
    given = policy.logits(ids, is_padding)
    is_scored = ~is_padding & is_picture[:, None]
    assert not is_scored.any() or (given - wanted)[is_scored].abs().max() <= 2e-5
    is_text = ~is_picture[:, None] & ~is_padding[:, 1:]
    assert not is_text.any() or (given[:, 1:] - wanted[:, :-1])[is_text].abs().max() <= 2e-5


@pytest.mark.parametrize("case", GREEDY, ids=lambda case: case["name"])
def test_greedy_pictures_equal_the_reference(
    case: dict[str, float], policy: ShowoPolicy, golden: dict[str, torch.Tensor]
) -> None:
    assert min(case["min_argmax_log_margin"], case["min_selection_log_gap"]) > 3e-5
    ids, twin = golden[f"in_{case['name']}"], golden.get(f"uncond_{case['name']}")
    out = sample_ids(
        policy,
        ids,
        is_padding=ids == PAD,
        num_denoising_steps=case["timesteps"],
        schedule=case["schedule"],
        guidance_scale=case["guidance_scale"],
        unconditional_ids=twin,
        vocabulary_range=CODES,
    )
    is_code = torch.zeros_like(ids, dtype=torch.bool)
    is_code[:, -1 - case["num_vq_tokens"] : -1] = True
    assert torch.equal(out.token_ids[is_code].view(len(ids), -1) - CODES[0], golden[f"out_{case['name']}"])
    assert torch.equal(out.token_ids[~is_code], ids[~is_code])


@torch.no_grad()
def test_confidences_of_the_references_own_draws_and_the_counts_equal_its_record(
    policy: ShowoPolicy, golden: dict[str, torch.Tensor]
) -> None:
    name = "N16_B2_T8_seeded"
    ids, twin = golden[f"in_{name}"].clone(), golden[f"uncond_{name}"].clone()
    codes = slice(-17, -1)
    for step in range(8):
        logits = policy.head(policy.hidden(ModelInput(token_ids=ids, is_padding=ids == PAD))[:, codes], CODES)
        base = policy.head(policy.hidden(ModelInput(token_ids=twin, is_padding=twin == PAD))[:, codes], CODES)
        guided = (1 + 1.75) * logits - 1.75 * base
        drawn = golden[f"drawn_{name}"][step]
        probability = guided.softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
        is_unknown = ids[:, codes] == MASK
        assert (probability - golden[f"conf_{name}"][step])[is_unknown].abs().max() <= 2e-5
        num_unknown = is_unknown.sum(1)
        progress = Progress(num_at_start=num_unknown, num_masked=num_unknown, num_positions=16, step=step, num_steps=8)
        num_kept = num_unknown - Cosine().count(progress)
        is_masked = golden[f"masked_{name}"][step].bool()
        if step < 7:
            assert torch.equal(num_kept, is_masked.sum(1))
        filled = torch.where(is_unknown & ~is_masked, drawn + CODES[0], ids[:, codes])
        ids[:, codes], twin[:, codes] = filled, filled


def test_greedy_answer_equals_the_references_next_tokens(policy: ShowoPolicy, golden: dict[str, torch.Tensor]) -> None:
    ids, wanted = golden["mmu_ids"], golden["mmu_out"]
    canvas = torch.cat([ids, torch.full((1, len(wanted)), MASK)], dim=1)
    out = sample_ids(policy, canvas, num_denoising_steps=len(wanted), block_length=1)
    assert out.token_ids[0, ids.shape[1] :].tolist() == wanted.tolist()


def test_names_and_shapes_equal_the_released_layout(policy: ShowoPolicy) -> None:
    wanted = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in policy.module.state_dict().items()} == wanted


def test_ids_follow_from_the_config_alone() -> None:
    ids = load_policy(GOLDEN, dtype="float32").vocabulary
    assert (ids.mask_token_id, ids.eos_token_id, ids.pad_token_id) == (MASK, 150, PAD)
    assert (ids.image_range, ids.text_range) == (CODES, (0, 200))
    assert ids.special == {"bos": 150, "ipad": PAD, **MARKS}


def test_released_sizes_come_without_the_language_models_config(tmp_path: Path) -> None:
    released = {
        "_class_name": "Showo",
        "vocab_size": 58498,
        "llm_vocab_size": 50295,
        "codebook_size": 8192,
        "llm_model_path": "microsoft/phi-1_5",
        "w_clip_vit": False,
    }
    config = ShowoPolicy.complete_config(released, tmp_path)
    assert (config["mask_token_id"], config["image_offset"], config["soi_token_id"]) == (58497, 50305, 50296)
    with torch.device("meta"):
        module = ShowoPolicy.build(config)
    width, inner, rows = 2048, 8192, 58498
    layer = 4 * width * (width + 1) + 2 * width * inner + inner + width + 2 * width + 4 * 64
    wanted = 2 * rows * width + rows + 24 * layer + 2 * width
    assert sum(parameter.numel() for parameter in module.parameters()) == wanted == 1_448_176_770
    with pytest.raises(ValueError, match="no folder beside it"):
        ShowoPolicy.complete_config(released | {"llm_model_path": "other/model"}, tmp_path)
    with pytest.raises(ValueError, match="are 58498"):
        ShowoPolicy.complete_config(released | {"vocab_size": 58499}, tmp_path)
    with pytest.raises(ValueError, match="w_clip_vit"):
        ShowoPolicy.build(released | {"w_clip_vit": True})


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (shade, shade, shade))


def imagine(number: int, text: str) -> Prompt:
    return Prompt(id=str(number), kind="imagine", messages=(Message(role="user", text=text),))


DRAW = SamplingSettings(completion_length=16, num_denoising_steps=4, schedule="cosine", guidance_scale=1.5)
ANSWER = SamplingSettings(completion_length=5, num_denoising_steps=1, temperature=0.0)


def test_canvas_of_a_picture_is_the_references_row_without_its_padding(
    policy: ShowoPolicy, golden: dict[str, torch.Tensor]
) -> None:
    canvas = policy.encode(imagine(0, "w81 w126 w18 w29 w32 w138"), DRAW)
    row, twin = golden["in_N16_B1_T8_linear"][0], golden["uncond_N16_B1_T8_linear"][0]
    assert canvas.token_ids.tolist() == row[row != PAD].tolist()
    assert canvas.unconditional_ids is not None and canvas.unconditional_is_padding is not None
    assert canvas.unconditional_ids[~canvas.unconditional_is_padding].tolist() == twin[twin != PAD].tolist()


def test_question_about_a_picture_is_answered_token_by_token(policy: ShowoPolicy) -> None:
    prompt = Prompt(id="0", kind="understand", messages=(Message(role="user", text="w7 w9", images=(picture(255),)),))
    canvas = policy.encode(prompt, ANSWER)
    assert canvas.token_ids.tolist() == [206, 201, 211, 212, 213, 214, 202, 150, 199, 7, 9, 199, *[MASK] * 5]
    (span,) = canvas.open_spans
    assert (span.block_length, span.num_denoising_steps, span.vocabulary_range) == (1, 5, (0, 200))
    row = torch.from_numpy(canvas.token_ids)[None].clone()
    for place in range(12, 17):  # the slow way: cut the row, take the last position's own output
        cut = row[:, :place]
        output = policy.module.head(policy.module(cut, omni_visible(cut, None, **MARKS)))
        row[0, place] = output[0, -1, :200].argmax()
    assert torch.equal(sample(policy, [canvas], ANSWER.model_copy(update={"stop_at_eos": False}), [0]).token_ids, row)
    for bad in (imagine(0, "w1"), prompt):
        images = () if bad.kind == "understand" else (picture(0),)
        with pytest.raises(ValueError, match="pictures"):
            policy.encode(
                Prompt(id="1", kind=bad.kind, messages=(Message(role="user", text="w1", images=images),)), ANSWER
            )


@torch.no_grad()
@pytest.mark.parametrize("mark", ["t2i", "mmu", "text"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbors_change_no_row(policy: ShowoPolicy, mark: str, side: str) -> None:
    rows = {
        "t2i": [205, 150, 3, 4, 150, 201, 211, 274, 274, 230, 202],
        "mmu": [206, 201, 211, 230, 202, 150, 3, 4, 9, 274],
        "text": [150, 3, 4, 9, 8, 7],
    }
    ids = torch.tensor([rows[mark]])
    alone = policy.hidden(ModelInput(token_ids=ids))
    is_padding = torch.zeros(4, ids.shape[1] + 4, dtype=torch.bool)
    is_padding[0, slice(0, 4) if side == "left" else slice(ids.shape[1], None)] = True
    is_padding[3] = True
    batch = torch.randint(0, 270, is_padding.shape, generator=torch.Generator().manual_seed(0))
    batch[0, ~is_padding[0]] = ids[0]
    batch[0, is_padding[0]] = 205  # what stands in padding is seen by nobody, not even as the kind of the row
    found = policy.hidden(ModelInput(token_ids=batch, is_padding=is_padding))
    torch.testing.assert_close(found[0, ~is_padding[0]], alone[0], atol=2e-5, rtol=0)
    assert torch.isfinite(found).all()


def test_learner_raises_the_reward_of_pictures() -> None:
    policy = load(gradient_checkpointing=True)
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    assert len(policy.lora_targets) == 12
    settings = LearnerSettings(lr=6e-3, num_inner_updates=2, lr_schedule="constant")
    learner = Learner(policy, None, UniGRPO(), clipped_loss(coef=0.01), settings, num_steps=8)
    version = PolicyVersion(step=0, kind="adapter", sha256="0")
    means = []
    for step in range(8):
        prompts = [(imagine(number, f"w{number} w5"), DRAW) for number in range(2)]
        (unit,) = plan_units(prompts, group_size=12, rows_per_unit=24, seed=0, step=step)
        rollouts = generate(policy, unit, version)
        assert all(rollout.image is not None and rollout.image.shape == (8, 8, 3) for rollout in rollouts)
        rewards = np.array([(rollout.token_ids[rollout.is_completion] < 242).mean() for rollout in rollouts])
        means.append(rewards.mean())
        grouped = rewards.reshape(2, 12)
        advantages = ((grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, keepdims=True) + 1e-4)).flatten()
        batch = collate(rollouts, advantages, policy.vocabulary.eos_token_id)
        begun = learner.begin_batch(step, batch)
        first, _ = (begun.update(n) for n in range(begun.num_updates))
        assert first.sums.mean("ratio") == 1.0
        assert step or first.sums.mean("kl") == 0.0
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 0.1, means


def test_a_merged_copy_loads_by_itself(policy: ShowoPolicy, tmp_path: Path) -> None:
    save_merged(policy, tmp_path)
    copy = load_policy(tmp_path, dtype="float32")
    ids = torch.tensor([[205, 150, 3, 150, 201, 211, 274, 202]])
    assert torch.equal(copy.logits(ids), policy.logits(ids))


def test_decoding_a_picture_takes_its_codes_alone(policy: ShowoPolicy) -> None:
    span = Span(kind="image_codes", start=0, stop=16)
    assert policy.decode_image(np.arange(210, 226), span).size == (8, 8)
    with pytest.raises(ValueError, match="no picture"):
        policy.decode_image(np.arange(200, 216), span)
