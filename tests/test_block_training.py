"""Block-causal families through the whole step of UniGRPO: generated with the cache, scored as generated, learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from losses import clipped_loss
from tokenizers import Tokenizer, models, pre_tokenizers

from unigrpo.learner.batch import collate
from unigrpo.learner.learner import Learner, UpdateStats
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import adapter_state, add_lora
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.models.text_policy import TextPolicy
from unigrpo.rollouts.units import generate, plan_units
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Batch, Message, PolicyVersion, Prompt, Rollout, Rollouts

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = [Prompt(id=text, kind="reason", messages=(Message(role="user", text=text),)) for text in ("up", "away")]
SETTINGS = {
    "sdar_tiny": {"remasking": {"use": "low_confidence_dynamic", "threshold": 0.5}},
    "llada2_tiny": {"remasking": "low_confidence_static"},
    "llada21_tiny": {"remasking": {"use": "low_confidence_dynamic", "threshold": 0.3}, "editing_threshold": 0.1},
}


def letters() -> TextTokenizer:
    alphabet = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token="z"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return TextTokenizer(tokenizer, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")


def load(name: str) -> TextPolicy:
    policy = load_policy(
        GOLDEN / name,
        dtype="float32",
        tokenizer=letters(),
        vocabulary={"mask": 500, "eos": 491, "tokenizer_length": 512},
    )
    policy.block_length = 4  # type: ignore[attr-defined]
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    return policy


def rollouts_of(policy: TextPolicy, name: str, step: int) -> Rollouts:
    sampling = SamplingSettings(completion_length=8, num_denoising_steps=4, temperature=1.0, **SETTINGS[name])
    (unit,) = plan_units([(prompt, sampling) for prompt in PROMPTS], group_size=8, rows_per_unit=16, seed=0, step=step)
    return generate(policy, unit, PolicyVersion(step=step, kind="adapter", sha256="0"))


def share_of_low_ids(rollout: Rollout) -> float:
    return float((rollout.token_ids[rollout.is_completion] < 128).mean())


def one_step(learner: Learner, batch: Batch, step: int) -> list[UpdateStats]:
    begun = learner.begin_batch(step, batch)
    return [begun.update(n) for n in range(begun.num_updates)]


def train(name: str, num_steps: int, lr: float) -> tuple[TextPolicy, list[float], list[list[UpdateStats]]]:
    policy = load(name)
    learner = Learner(
        policy, None, UniGRPO(), clipped_loss(), LearnerSettings(lr=lr, lr_schedule="constant"), num_steps
    )
    means, updates = [], []
    for step in range(num_steps):
        rollouts = rollouts_of(policy, name, step)
        rewards = np.array([share_of_low_ids(rollout) for rollout in rollouts])
        means.append(float(rewards.mean()))
        grouped = rewards.reshape(2, 8)
        advantages = ((grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, keepdims=True) + 1e-4)).ravel()
        batch = collate(rollouts, advantages, policy.vocabulary.pad_token_id)
        assert (batch.lengths % 4 == 0).all()
        updates.append(one_step(learner, batch, step))
    return policy, means, updates


@pytest.mark.parametrize("name", ["sdar_tiny", "llada2_tiny"])
def test_a_dozen_steps_make_the_rewarded_tokens_likelier(name: str) -> None:
    _, means, updates = train(name, num_steps=12, lr=2e-2)
    assert updates[0][0].sums.mean("kl") == 0.0
    assert all(first.sums.mean("ratio") == 1.0 for first, *_ in updates)
    assert any(other.sums.mean("ratio") != 1.0 for _, *others in updates for other in others)
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 0.15, means


def test_edited_completions_train_too_and_gradient_reaches_every_target() -> None:
    policy, _, updates = train("llada21_tiny", num_steps=2, lr=1e-3)
    assert not any(update.is_skipped for step in updates for update in step)
    still = [name for name, weight in adapter_state(policy).items() if "lora_B" in name and not weight.any()]
    assert not still


def test_micro_batches_and_checkpointing_change_no_gradient() -> None:
    gradients = []
    for rows, is_checkpointing in ((64, False), (3, False), (64, True)):
        policy = load("sdar_tiny")
        policy.module.is_checkpointing = is_checkpointing
        rollouts = rollouts_of(policy, "sdar_tiny", 0)
        batch = collate(rollouts, np.tile([1.0, -1.0], 8), policy.vocabulary.pad_token_id)
        settings = LearnerSettings(lr=1e-3, micro_batch_rows=rows)
        learner = Learner(policy, None, UniGRPO(), clipped_loss(), settings, num_steps=1)
        begun = learner.begin_batch(0, batch)
        learner.gradient(batch, begun.draws[0], None, begun.ref_logprobs[0])
        weights = policy.module.parameters()
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None]))
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-5 * float(gradients[0].norm()))
