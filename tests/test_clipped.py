import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.methods.objectives.clipped import clipped_surrogate, surrogate_loss

LOGPROB = st.floats(-8, 0)
TOKENS = st.lists(
    st.tuples(LOGPROB, LOGPROB, LOGPROB, st.sampled_from([-2.0, -0.3, 0.0, 0.7]), st.floats(0.001, 1)), max_size=12
)


def slow_loss(tokens, clip_eps, kl_coef, kl):
    """One token at a time, in Python's float64."""
    loss = 0.0
    for logprob, old, ref, advantage, weight in tokens:
        ratio = math.exp(logprob - old)
        clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
        d = ref - logprob
        penalty = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[kl]
        loss += weight * (-min(ratio * advantage, clipped * advantage) + kl_coef * penalty)
    return loss


def columns(tokens, dtype=torch.float64):
    return torch.tensor(tokens, dtype=dtype).reshape(len(tokens), 5).unbind(1)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@given(tokens=TOKENS)
@settings(max_examples=40)
def test_loss_equals_slow_double_loop(kl, tokens):
    loss, stats = surrogate_loss(*columns(tokens), clip_eps=0.2, kl_coef=0.04, kl=kl)
    assert loss.item() == pytest.approx(slow_loss(tokens, 0.2, 0.04, kl), rel=1e-10, abs=1e-10)
    assert loss.item() == pytest.approx((stats.policy_loss + 0.04 * stats.kl).item())


def test_gradient_equals_finite_differences():
    tokens = [(-1.0, -1.1, -0.9, 1.0, 0.3), (-2.0, -1.0, -1.5, 1.0, 0.2), (-0.5, -1.5, -1.0, -2.0, 0.1)]
    logprobs, *rest = columns(tokens)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: surrogate_loss(value, *rest, 0.2, 0.04, "k3")[0], (logprobs,))


def test_clip_cuts_the_gradient_on_the_side_of_the_advantage_only():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clipped_surrogate(ratio, advantages, 0.2).sum().backward()
    assert ratio.grad.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_clip_fraction_is_the_weight_of_the_cut_tokens():
    logprobs = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]).log().double()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).double()
    weight = torch.tensor([0.4, 0.1, 0.1, 0.2, 0.2]).double()
    _, stats = surrogate_loss(logprobs, torch.zeros(5).double(), None, advantages, weight, 0.2, 0.0)
    assert stats.clip_fraction == pytest.approx(0.6)
    assert stats.ratio_mean == pytest.approx(0.4 * 1.5 + 0.1 * 1.5 + 0.1 * 0.5 + 0.2 * 0.5 + 0.2)
    assert stats.kl_mean == 0


def test_same_logprobs_give_ratio_one_and_kl_zero_exactly():
    logprobs = torch.linspace(-9, -0.01, 50, requires_grad=True)
    weight = torch.full((50,), 0.02, dtype=torch.float64)
    _, stats = surrogate_loss(logprobs, logprobs.detach(), logprobs.detach(), torch.ones(50), weight, 0.2, 0.04)
    assert stats.ratio == stats.weight and stats.ratio_mean == 1.0
    assert stats.kl_mean == 0.0 and stats.clip_fraction == 0.0


def test_micro_batches_add_up():
    generator = torch.Generator().manual_seed(3)
    vectors = list(torch.randn(5, 10, generator=generator, dtype=torch.float64).unbind(0))
    vectors[4] = vectors[4].abs()
    whole, stats = surrogate_loss(*vectors, 0.2, 0.04)
    halves = [surrogate_loss(*[v[part] for v in vectors], 0.2, 0.04) for part in (slice(0, 3), slice(3, 10))]
    torch.testing.assert_close(halves[0][0] + halves[1][0], whole)
    summed = halves[0][1] + halves[1][1]
    assert summed.ratio_mean == pytest.approx(stats.ratio_mean) and summed.entropy == pytest.approx(stats.entropy)


def test_nothing_scored_gives_zero_loss_and_zero_means():
    empty = torch.zeros(0, requires_grad=True)
    loss, stats = surrogate_loss(empty, empty, empty, empty.detach(), empty.detach(), 0.2, 0.04)
    loss.backward()
    assert loss == 0 and stats.ratio_mean == 0.0


def test_a_huge_log_ratio_stays_finite():
    loss, _ = surrogate_loss(
        torch.tensor([0.0]), torch.tensor([-500.0]), None, torch.tensor([-1.0]), torch.tensor([1.0]), 0.2, 0.0
    )
    assert loss.item() == pytest.approx(math.exp(20), rel=1e-5)


@pytest.mark.parametrize("difference", [30.0, -30.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_token_far_from_the_old_policy_has_no_gradient(difference, advantage):
    def loss_of(logprobs):
        old = torch.tensor([-50.0 - difference]).double()
        return surrogate_loss(logprobs, old, None, torch.tensor([advantage]).double(), torch.ones(1), 0.2, 0.0)[0]

    logprobs = torch.tensor([-50.0], dtype=torch.float64, requires_grad=True)
    loss_of(logprobs).backward()
    assert logprobs.grad.item() == 0.0
    with torch.no_grad():
        assert loss_of(logprobs + 1e-3) == loss_of(logprobs - 1e-3)


def test_clamped_fraction_is_the_weight_of_the_tokens_far_from_old_or_reference():
    logprobs = torch.tensor([-1.0, -30.0, -1.0, -45.0]).double()
    old = torch.tensor([-2.0, -5.0, -20.9, -45.0]).double()
    ref = torch.tensor([-1.0, -30.0, -22.0, -1.0]).double()
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    _, stats = surrogate_loss(logprobs, old, ref, torch.ones(4).double(), weight, 0.2, 0.04)
    assert stats.clamped_fraction == pytest.approx(0.2 + 0.3 + 0.4)
    _, stats = surrogate_loss(logprobs, old, None, torch.ones(4).double(), weight, 0.2, 0.0)
    assert stats.clamped_fraction == pytest.approx(0.2)


def test_a_vector_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"advantages has shape \(1,\), logprobs \(2,\)"):
        surrogate_loss(torch.zeros(2), torch.zeros(2), None, torch.zeros(1), torch.zeros(2), 0.2, 0.0)
