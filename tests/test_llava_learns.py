"""Pictures as features through the whole loop: rollouts, learner, reference and the supervised stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from losses import clipped_loss
from PIL import Image

from unigrpo.learner.batch import collate
from unigrpo.learner.learner import Learner
from unigrpo.learner.logprobs import token_logprobs
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora
from unigrpo.models.pictures.features import join_features, shift_ids, with_image_features
from unigrpo.recipe.load import load_recipe
from unigrpo.rollouts.units import generate, joined, plan_units
from unigrpo.runs.metrics import read_metrics
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings
from unigrpo.settings.sft import SftTaskSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.supervised.rows import Demonstrations
from unigrpo.supervised.sft import task_loss
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.train import train
from unigrpo.types import Message, ModelInput, PolicyVersion, Prompt

FAMILIES = ("llada_v", "lavida")
SAMPLING = SamplingSettings(completion_length=8, num_denoising_steps=8, temperature=1.0)
VERSION = PolicyVersion(step=0, kind="adapter", sha256="")
PICTURES = (Image.new("RGB", (56, 56), "red"), Image.new("RGB", (130, 50), "blue"))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(request.param, tmp_path_factory.mktemp(request.param) / "policy", layers=2)


def prompts() -> list[Prompt]:
    first = (Message(role="user", text="Which colour?", images=PICTURES[:1]),)
    second = (
        Message(role="user", text="Which?", images=PICTURES),
        Message(role="assistant", text="Two."),
        Message(role="user", text="And here?", images=PICTURES[1:]),
    )
    return [
        Prompt(id="a", kind="understand", messages=first),
        Prompt(id="b", kind="understand", messages=second),
        Prompt(id="c", kind="reason", messages=(Message(role="user", text="2 + 2?"),)),
    ]


def policy_of(folder: Path) -> Any:
    policy = load_policy(folder, dtype="float32")
    policy.module.requires_grad_(False)
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    return policy


def batch_of(policy: Any) -> Any:
    asked = [(prompt, SAMPLING) for prompt in prompts()]
    units = plan_units(asked, group_size=2, rows_per_unit=6, seed=0, step=0)
    rollouts = joined([generate(policy, unit, VERSION) for unit in units])
    advantages = np.array([1.0, -1.0] * 3)
    batch = collate(rollouts, advantages, policy.vocabulary.pad_token_id)
    return rollouts, with_image_features(batch, rollouts, policy)


def test_the_learner_scores_what_the_sampler_saw(folder: Path) -> None:
    policy = policy_of(folder)
    rollouts, batch = batch_of(policy)
    num_compared = 0
    for row, rollout in enumerate(rollouts):
        last = rollout.committed_step == rollout.committed_step.max()
        if last.sum() != 1 or not rollout.is_completion[last].all():
            continue
        is_scored = torch.zeros_like(batch.is_padding[row : row + 1])
        is_scored[0, : len(last)] = torch.from_numpy(last)
        noisy = batch.token_ids[row : row + 1].masked_fill(is_scored, policy.vocabulary.mask_token_id)
        given = ModelInput(
            token_ids=noisy,
            is_padding=batch.is_padding[row : row + 1],
            image_features=batch.image_features,
            prompt_lengths=batch.prompt_lengths[row : row + 1],
        )
        span = next(span for span in rollout.spans if span.is_open)
        with torch.no_grad():
            found = token_logprobs(
                policy, given, batch.token_ids[row : row + 1], is_scored, ranges=(span.vocabulary_range,)
            )
        assert abs(float(found) - rollout.committed_logprobs[last].item()) <= 1e-4
        num_compared += 1
    assert num_compared >= 4


def test_features_lie_once_a_prompt_and_rollouts_count_their_own(folder: Path) -> None:
    policy = policy_of(folder)
    rollouts, batch = batch_of(policy)
    counts = [len(policy.image_features(prompt.images)) if prompt.images else 0 for prompt in prompts()]
    assert len(batch.image_features) == sum(counts)
    size = policy.vocabulary.size
    for row, start in zip(range(6), [0, 0, counts[0], counts[0], 0, 0], strict=True):
        own = rollouts[row].token_ids[rollouts[row].token_ids >= size]
        assert own.tolist() == [size + number for number in range(counts[row // 2])]
        moved = batch.token_ids[row][batch.token_ids[row] >= size].numpy()
        assert (moved - own).tolist() == [start] * len(own)


def test_prompts_of_two_tasks_with_one_id_keep_their_own_pictures(folder: Path) -> None:
    policy = policy_of(folder)
    asked, plain = replace(prompts()[0], id="train-1"), replace(prompts()[2], id="train-1")
    units = plan_units([(plain, SAMPLING), (asked, SAMPLING)], group_size=1, rows_per_unit=2, seed=0, step=0)
    rollouts = joined([generate(policy, unit, VERSION) for unit in units])
    batch = collate(rollouts, np.zeros(2), policy.vocabulary.pad_token_id)
    found = with_image_features(batch, rollouts, policy).image_features
    assert torch.equal(found, policy.image_features(asked.images))


@pytest.mark.parametrize("keeps_features", [True, False])
def test_prompts_of_one_task_with_one_id_keep_their_own_pictures(folder: Path, keeps_features: bool) -> None:
    policy = policy_of(folder)
    asked = [replace(prompt, id="train-1") for prompt in prompts()[:2]]
    units = plan_units([(prompt, SAMPLING) for prompt in asked], group_size=1, rows_per_unit=1, seed=0, step=0)
    rollouts = joined([generate(policy, replace(unit, keeps_features=keeps_features), VERSION) for unit in units])
    batch = with_image_features(collate(rollouts, np.zeros(2), policy.vocabulary.pad_token_id), rollouts, policy)
    own = [policy.image_features(prompt.images) for prompt in asked]
    assert torch.equal(batch.image_features, torch.cat(own))
    starts = [int(row[row >= policy.vocabulary.size].min()) - policy.vocabulary.size for row in batch.token_ids]
    assert starts == [0, len(own[0])]


def test_units_of_which_one_keeps_no_features_are_joined_without_any(folder: Path) -> None:
    policy = policy_of(folder)
    units = plan_units([(prompt, SAMPLING) for prompt in prompts()], group_size=1, rows_per_unit=1, seed=0, step=0)
    kept = [replace(unit, keeps_features=number > 0) for number, unit in enumerate(units)]
    rollouts = joined([generate(policy, unit, VERSION) for unit in kept])
    assert rollouts.image_features == ()
    batch = collate(rollouts, np.zeros(3), policy.vocabulary.pad_token_id)
    whole = policy.image_features([picture for prompt in prompts() for picture in prompt.images])
    assert torch.equal(with_image_features(batch, rollouts, policy).image_features, whole)


def test_pictures_go_through_the_tower_once_where_rollouts_keep_their_features(folder: Path) -> None:
    policy, calls = policy_of(folder), []
    policy.module.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    policy.module.model.vision_tower.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    asked = [(prompt, SAMPLING) for prompt in prompts()]
    units = plan_units(asked, group_size=2, rows_per_unit=6, seed=0, step=0)
    tables = []
    for keeps_features, again in ((True, 1), (False, 2)):
        calls.clear()
        kept = [replace(unit, keeps_features=keeps_features) for unit in units]
        rollouts = joined([generate(policy, unit, VERSION) for unit in kept])
        num_sampling = len(calls)
        batch = collate(rollouts, np.zeros(6), policy.vocabulary.pad_token_id)
        tables.append(with_image_features(batch, rollouts, policy))
        assert len(calls) == again * num_sampling > 0
    assert torch.equal(tables[0].image_features, tables[1].image_features)
    assert torch.equal(tables[0].token_ids, tables[1].token_ids)


def test_first_update_has_ratio_one_and_no_kl_and_moves_every_adapter(folder: Path) -> None:
    policy = policy_of(folder)
    _, batch = batch_of(policy)
    settings = LearnerSettings(lr=1e-2, num_inner_updates=2, micro_batch_rows=4, lr_schedule="constant")
    learner = Learner(policy, None, UniGRPO(), clipped_loss(), settings, 1)
    begun = learner.begin_batch(0, batch)
    stats = [begun.update(n) for n in range(begun.num_updates)]
    assert stats[0].sums.mean("ratio") == 1.0 and stats[0].sums.mean("kl") == 0.0 and stats[0].grad_norm > 0
    moved = {name for name, weight in policy.module.named_parameters() if "lora_B" in name and bool(weight.any())}
    assert len(moved) == len(policy.lora_targets)


def test_a_picture_changes_what_is_answered(folder: Path) -> None:
    policy = policy_of(folder)
    pictures = (PICTURES[0], Image.effect_noise((56, 56), 90).convert("RGB"))
    hidden = []
    for picture in pictures:
        message = Message(role="user", text="?", images=(picture,))
        canvas = policy.encode(Prompt(id="p", kind="understand", messages=(message,)), SAMPLING)
        ids = torch.from_numpy(canvas.token_ids)[None]
        hidden.append(policy.hidden(ModelInput(token_ids=ids, image_features=canvas.image_features)))
    assert (hidden[0][0, -1] - hidden[1][0, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("masks", ["random", "complementary"])
def test_a_demonstration_with_a_picture_trains(folder: Path, masks: str) -> None:
    policy = policy_of(folder)

    class Source:
        def __getitem__(self, index: int) -> Prompt:
            return prompts()[index % 2]

        def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float) -> str:
            return "red"

    settings = SftTaskSettings(kind="understand", data={"use": "x:Y"}, batch_size=2, completion_length=4, masks=masks)
    source: Any = Source()
    rows = Demonstrations(policy, "understand", settings, source, seed=0, caption_dropout=0.0).rows(0)
    loss = task_loss(policy, "understand", rows, 1e-3, is_complementary=masks == "complementary")
    loss.backward()
    trained = [weight for name, weight in policy.module.named_parameters() if "lora_B" in name]
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in trained)


def test_three_steps_through_the_trainer(folder: Path, tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "red.png")
    PICTURES[1].save(tmp_path / "blue.png")
    lines = [
        {"prompt": "Which colour?", "answer": "red", "image": "red.png"},
        {"prompt": "Which two?", "answer": "both", "image": ["red.png", "blue.png"]},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "my_rewards.py").write_text(
        "def letters(*, prompts, completions):\n    return [len(set(text)) / 26 for text in completions]\n"
    )
    recipe = {
        "name": "pictures",
        "num_steps": 3,
        "group_size": 4,
        "num_threads": 1,
        "policy": {"path": str(folder), "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "tasks": {
            "understand": {
                "data": {"jsonl": "prompts.jsonl"},
                "prompts_per_step": 2,
                "sampling": {"completion_length": 8, "num_denoising_steps": 4},
            }
        },
        "rewards": {"letters": {"use": "my_rewards.py:letters"}},
        "learner": {"lr": 0.01, "lr_schedule": "constant"},
        "evaluate": {"enabled": False},
        "tracking": {"use": ["jsonl"]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert summary["num_steps"] == 3
    steps = read_metrics(tmp_path / "run")
    assert len(steps) == 3 and all(np.isfinite(step["grad_norm"]) for step in steps)
    assert any(step["grad_norm"] > 0 for step in steps)


def test_equal_tensors_share_their_place_and_text_rows_stay() -> None:
    first, second = torch.zeros(3, 2), torch.ones(2, 2)
    table, offsets = join_features([first, None, second, first])
    assert table is not None and len(table) == 5
    assert offsets.tolist() == [0, 0, 3, 0]
    ids = torch.tensor([[9, 10], [1, 2], [10, 11], [10, 12]])
    assert shift_ids(ids, offsets, 10).tolist() == [[9, 10], [1, 2], [13, 14], [10, 12]]
    assert join_features([None, None])[0] is None
