"""Dream through the whole step of UniGRPO: generated in its own order, scored, learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from losses import clipped_loss
from tokenizers import pre_tokenizers

from unigrpo.learner.batch import collate
from unigrpo.learner.learner import Learner, UpdateStats
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora
from unigrpo.rollouts.units import generate, plan_units
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Message, PolicyVersion, Prompt, Rollout

GOLDEN = Path(__file__).parent / "golden" / "dream_tiny"
NUM_STEPS = 12
SAMPLING = SamplingSettings(
    completion_length=8, num_denoising_steps=4, remasking="entropy", schedule="dream", temperature=1.0
)
PROMPTS = [Prompt(id=text, kind="reason", messages=(Message(role="user", text=text),)) for text in ("up", "away", "to")]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as Dream's: bytes, two turns' marks, a chat template, and no tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 256, "<|im_end|>": 257}))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def share_of_letters(rollout: Rollout) -> float:
    return sum(token < 128 for token in rollout.token_ids[rollout.is_completion]) / 8


def test_a_dozen_steps_make_the_rewarded_tokens_likelier(tokenizer_folder: Path) -> None:
    policy = load_policy(GOLDEN, dtype="float32", tokenizer=tokenizer_folder)
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    learner = Learner(
        policy, None, UniGRPO(), clipped_loss(), LearnerSettings(lr=2e-2, lr_schedule="constant"), num_steps=NUM_STEPS
    )
    means, firsts = [], []
    for step in range(NUM_STEPS):
        (unit,) = plan_units(
            [(prompt, SAMPLING) for prompt in PROMPTS], group_size=8, rows_per_unit=24, seed=0, step=step
        )
        rollouts = generate(policy, unit, PolicyVersion(step=step, kind="adapter", sha256="0"))
        rewards = np.array([share_of_letters(rollout) for rollout in rollouts])
        means.append(float(rewards.mean()))
        grouped = rewards.reshape(3, 8)
        advantages = ((grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, keepdims=True) + 1e-4)).ravel()
        batch = collate(rollouts, advantages, policy.vocabulary.pad_token_id)
        firsts.append(one_step(learner, batch, step)[0])
    assert firsts[0].sums.mean("ratio") == 1.0
    assert firsts[0].sums.mean("kl") == 0.0
    assert all(first.sums.mean("ratio") == 1.0 for first in firsts), (
        "old and policy are the same weights at a first update"
    )
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 0.15, means


def one_step(learner: Learner, batch: object, step: int) -> list[UpdateStats]:
    begun = learner.begin_batch(step, batch)
    return [begun.update(n) for n in range(begun.num_updates)]
