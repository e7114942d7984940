"""The whole objective, from noisy ids and weights to loss and gradient, against the golden outputs."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unigrpo.learner.logprobs import token_logprobs
from unigrpo.methods.advantages.mean import Mean
from unigrpo.methods.advantages.zscore import ZScore
from unigrpo.methods.estimators.unigrpo import scored_weight
from unigrpo.methods.groups import group_advantages
from unigrpo.methods.loss import make_loss
from unigrpo.models import load_policy
from unigrpo.settings.learning import AdvantageChoice, KlChoice, ObjectiveChoice, RatioChoice
from unigrpo.types import ModelInput

FOLDER = "tests/golden/losses"
INPUTS = np.load(f"{FOLDER}/unigrpo_paper/inputs.npz")
EXPECTED = np.load(f"{FOLDER}/unigrpo_paper/expected.npz")
with open(f"{FOLDER}/unigrpo_paper/meta.json") as file:
    META = json.load(file)
NAMES = META["common"]["grad_weights"]
CLIP_EPS, KL_COEF, PROMPT = META["settings"]["epsilon"], META["settings"]["beta"], META["common"]["prompt_len"]
NUM_UPDATES = META["settings"]["mu"]
ADVANTAGES = {"zscore_k3": ZScore()}


@cache
def golden_policy(weights):
    policy = load_policy("tests/golden/llada_tiny", dtype="float32", vocabulary={"mask_token_id": 500})
    if weights is not None:
        policy.module.load_state_dict(load_file(f"{FOLDER}/models/{weights}.safetensors"), assign=True)
    policy.module.requires_grad_(weights == "policy_B")
    return policy


class Case:
    """One inner update of one schedule."""

    def __init__(self, spacing, update):
        self.noisy_ids = torch.from_numpy(INPUTS[f"{spacing}__noisy_ids"][update])
        self.targets = torch.from_numpy(np.concatenate([INPUTS["prompt_ids"], INPUTS["completion_ids"]], axis=1))
        scored = torch.from_numpy(INPUTS[f"{spacing}__scored"][update])
        self.is_scored = torch.nn.functional.pad(scored, (PROMPT, 0))
        self.length = torch.from_numpy(INPUTS["valid_to_first_eos"].sum(1)).long()

    def logprobs(self, weights, chunk=1024):
        model_input = ModelInput(token_ids=self.noisy_ids)
        return token_logprobs(golden_policy(weights), model_input, self.targets, self.is_scored, chunk=chunk)

    def on_grid(self, values):
        grid = torch.zeros(self.is_scored.shape, dtype=values.dtype)
        grid[self.is_scored] = values.detach()
        return grid[:, PROMPT:].numpy()

    def weight(self, normalizer):
        count = self.is_scored.sum(1) if normalizer == "scored" else self.length
        return scored_weight(self.is_scored, count)[self.is_scored]

    def advantages(self, rule):
        ids = np.arange(6) // int(INPUTS["group_size"])
        values = group_advantages(INPUTS["rewards"], ids, rule, AdvantageChoice()).values
        return torch.from_numpy(values)[:, None].expand(self.is_scored.shape)[self.is_scored]


def expected(spacing, key, update):
    return EXPECTED[f"{spacing}__{key}"][update]


def assert_close(got, wanted, atol, rtol=0.0):
    np.testing.assert_allclose(
        np.asarray(got.detach() if hasattr(got, "detach") else got), wanted, atol=atol, rtol=rtol
    )


@pytest.mark.parametrize("update", range(NUM_UPDATES))
@pytest.mark.parametrize("spacing", ["even", "alg1"])
def test_golden_logprobs_and_ratio(spacing, update):
    case = Case(spacing, update)
    with torch.no_grad():
        scores = {w: case.logprobs(w) for w in ("policy_B", None, "ref_C")}
    is_scored = case.is_scored[:, PROMPT:].numpy()
    for weights, key in (("policy_B", "logp_new"), (None, "logp_old"), ("ref_C", "logp_ref")):
        assert_close(case.on_grid(scores[weights])[is_scored], expected(spacing, key, update)[is_scored], atol=5e-6)
    ratio = (scores["policy_B"] - scores[None]).exp()
    assert_close(case.on_grid(ratio), expected(spacing, "ratio", update), atol=2e-5)
    if spacing == "alg1":
        means = case.on_grid(scores["policy_B"]).sum(1) / np.maximum(is_scored.sum(1), 1)
        assert_close(means, EXPECTED["seq_logp_mean_over_masked__alg1"][update], atol=5e-6)


@pytest.mark.parametrize("chunk", [5, 1024])
@pytest.mark.parametrize("name", ["k3", "k2", "k1", "zscore_k3"])
@pytest.mark.parametrize("update", range(NUM_UPDATES))
@pytest.mark.parametrize("spacing", ["even", "alg1"])
def test_golden_loss_and_gradient(spacing, update, name, chunk):
    case, kl = Case(spacing, update), name.removeprefix("zscore_")
    with torch.no_grad():
        old, ref = case.logprobs(None), case.logprobs("ref_C")
    module = golden_policy("policy_B").module
    module.zero_grad()
    scores = case.logprobs("policy_B", chunk)
    advantages = case.advantages(ADVANTAGES.get(name, Mean()))
    rollout = case.is_scored.nonzero()[:, 0]
    objective = make_loss(RatioChoice(), ObjectiveChoice(clip_eps=CLIP_EPS), KlChoice(use=kl, coef=KL_COEF))
    sums = objective(scores, old, ref, advantages, case.weight("scored"), rollout)
    key = f"{name}__"
    for got, field in ((sums.loss, "loss"), (sums.policy_loss, "policy_loss"), (sums.kl, "kl_mean")):
        assert_close(got, expected(spacing, key + field, update), atol=1e-6, rtol=5e-6)
    assert_close(case.on_grid(objective.kl(scores, ref)), expected(spacing, key + "kl", update), atol=2e-5)
    by_length = objective(scores, old, ref, advantages, case.weight("completion"), rollout).loss
    assert_close(by_length, expected(spacing, key + "loss_div_by_len", update), atol=1e-6, rtol=5e-6)

    sums.loss.backward()
    gradients = {field: module.get_parameter(weight).grad for field, weight in NAMES.items()}
    norm = expected(spacing, key + "grad_norm", update)
    whole = torch.cat([parameter.grad.double().flatten() for parameter in module.parameters()]).norm()
    assert_close(whole, norm, atol=2e-6 * norm)
    for field, gradient in gradients.items():
        assert_close(gradient.double().norm(), expected(spacing, f"{key}grad_{field}_norm", update), atol=2e-6 * norm)
        first = gradient.flatten()[:8]
        assert_close(first, expected(spacing, f"{key}grad_{field}_first8", update), atol=2e-6 * norm)
    token = int(INPUTS["completion_ids"][0, 0])
    for field, row in (("lm_head", token), ("wte", 500)):
        suffix = "row_comp00" if field == "lm_head" else "row_mask"
        wanted = expected(spacing, f"{key}grad_{field}_{suffix}_first8", update)
        assert_close(gradients[field][row, :8], wanted, atol=2e-6 * norm)
