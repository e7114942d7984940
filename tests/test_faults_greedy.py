"""Evaluation's greedy pass takes the family's own settings; the nucleus is the reference's."""

from __future__ import annotations

from importlib import resources
from types import SimpleNamespace

import pytest
import torch
import yaml

from unigrpo.models.families import known_families
from unigrpo.models.policies.dream import DreamPolicy
from unigrpo.models.policies.llada import LladaPolicy
from unigrpo.rollouts.draw import sample_tokens
from unigrpo.rollouts.orders.entropy import Entropy
from unigrpo.settings.tasks import SamplingSettings

SIZE = 6
POLICY = SimpleNamespace(
    vocabulary=SimpleNamespace(size=SIZE), banned_ids=(), head=lambda hidden, vocabulary_range=None: hidden
)


def test_dream_is_evaluated_as_its_release_does_and_others_at_temperature_0() -> None:
    task = SamplingSettings(completion_length=8, num_denoising_steps=8, remasking_temperature=1.0, top_p=0.5)
    dream = SamplingSettings.model_validate({**dict(task), **DreamPolicy.greedy})
    llada = SamplingSettings.model_validate({**dict(task), **LladaPolicy.greedy})
    assert (dream.temperature, dream.top_p, dream.remasking.use) == (0.1, 0.9, "entropy")
    assert (llada.temperature, llada.top_p, llada.remasking) == (0.0, 0.5, task.remasking)
    assert dream.remasking_temperature == llada.remasking_temperature == 0.0
    assert [name for name, said in known_families().items() if "greedy" in said] == ["dream"]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0])
def test_nucleus_equals_a_slow_loop(temperature: float) -> None:
    logits = torch.randn(40, SIZE, generator=torch.Generator().manual_seed(1))
    uniforms = (torch.arange(40) + 0.5) / 40
    found = sample_tokens(
        POLICY,
        logits,
        None,
        vocabulary_range=None,
        temperature=temperature,
        guidance_scale=0.0,
        uniforms=uniforms.double(),
        top_p=0.6,
        score=Entropy().score,
    )
    for row, logit in enumerate(logits):
        probs = (logit / temperature).softmax(-1).tolist()
        kept, total = [], 0.0
        for token in sorted(range(SIZE), key=lambda token: -probs[token]):
            if total > 0.6:
                break
            kept.append(token)
            total += probs[token]
        place, passed = float(uniforms[row]) * total, 0.0
        for token in sorted(kept):
            passed += probs[token]
            if place < passed:
                break
        assert int(found.token_ids[row]) == token
        shares = torch.tensor([probs[token] / total for token in kept])
        assert float(found.confidence[row]) == pytest.approx(float((shares * shares.log()).sum()), abs=1e-4)
        assert float(found.logprobs[row]) == pytest.approx(float(logit.log_softmax(-1)[token]), abs=1e-5)


INSTRUCTION = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. The "
    "reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> answer "
    "here\n"
)


def test_mmada_is_asked_in_the_words_it_was_trained_with_and_has_room_to_think() -> None:
    tasks = yaml.safe_load(resources.files("unigrpo.recipes").joinpath("mmada_unified.yaml").read_text())["tasks"]
    for task in ("reason", "understand"):
        assert tasks[task]["data"]["template"] == INSTRUCTION + "{prompt}"
    assert tasks["understand"]["sampling"]["completion_length"] == 256
