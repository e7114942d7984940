import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.methods.loss import LossOutputs, make_loss
from unigrpo.methods.objectives.base import LossInputs
from unigrpo.methods.objectives.clipped import Clipped
from unigrpo.settings.learning import KlChoice, ObjectiveChoice, RatioChoice

LOGPROB = st.floats(-8, 0)
TOKENS = st.lists(
    st.tuples(LOGPROB, LOGPROB, LOGPROB, st.sampled_from([-2.0, -0.3, 0.0, 0.7]), st.floats(0.001, 1)), max_size=12
)


def loss_of(logprobs, old, ref, advantages, weight, *, kl="k3", to="reference"):
    """The sums of a draw of one rollout; a penalty of 0.04 where there is a reference, or to the old policy."""
    coef = 0.04 if ref is not None or to == "old" else 0.0
    loss = make_loss(RatioChoice(), ObjectiveChoice(clip_eps=0.2), KlChoice(use=kl, coef=coef, to=to))
    return loss(logprobs, old, ref, advantages, weight, torch.zeros(len(logprobs), dtype=torch.int64))


def slow_exp(exponent):
    """The exponential, and its tangent at 3 beyond 3."""
    return math.exp(exponent) if exponent <= 3 else math.exp(3) * (1 + exponent - 3)


def slow_loss(tokens, clip_eps, kl_coef, kl):
    """One token at a time, in Python's float64."""
    loss = 0.0
    for logprob, old, ref, advantage, weight in tokens:
        ratio = slow_exp(logprob - old)
        clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
        d = ref - logprob
        half_square = d * d / 2 if abs(d) <= 3 else 4.5 + 3 * (abs(d) - 3)
        penalty = {"k1": -d, "k2": half_square, "k3": slow_exp(d) - d - 1}[kl]
        loss += weight * (-min(ratio * advantage, clipped * advantage) + kl_coef * penalty)
    return loss


def columns(tokens, dtype=torch.float64):
    return torch.tensor(tokens, dtype=dtype).reshape(len(tokens), 5).unbind(1)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@given(tokens=TOKENS)
@settings(max_examples=40)
def test_loss_equals_slow_double_loop(kl, tokens):
    sums = loss_of(*columns(tokens), kl=kl)
    assert sums.loss.item() == pytest.approx(slow_loss(tokens, 0.2, 0.04, kl), rel=1e-10, abs=1e-10)
    assert sums.loss.item() == pytest.approx((sums.policy_loss + 0.04 * sums.kl).item())


def test_gradient_equals_finite_differences():
    tokens = [(-1.0, -1.1, -0.9, 1.0, 0.3), (-2.0, -1.0, -1.5, 1.0, 0.2), (-0.5, -1.5, -1.0, -2.0, 0.1)]
    logprobs, *rest = columns(tokens)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: loss_of(value, *rest).loss, (logprobs,))


def test_clip_cuts_the_gradient_on_the_side_of_the_advantage_only():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    gain, is_cut = Clipped(clip_eps=0.2)(
        LossInputs(logprobs=ratio, ratio=ratio, advantages=advantages, weight=ratio.detach(), rollout=torch.zeros(4))
    )
    gain.sum().backward()
    assert is_cut.tolist() == [True, False, False, True]
    assert ratio.grad.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_clip_fraction_is_the_weight_of_the_cut_tokens():
    logprobs = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]).log().double()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).double()
    weight = torch.tensor([0.4, 0.1, 0.1, 0.2, 0.2]).double()
    sums = loss_of(logprobs, torch.zeros(5).double(), None, advantages, weight)
    assert sums.mean("cut") == pytest.approx(0.6)
    assert sums.mean("ratio") == pytest.approx(0.4 * 1.5 + 0.1 * 1.5 + 0.1 * 0.5 + 0.2 * 0.5 + 0.2)
    assert sums.mean("kl") == 0


def test_same_logprobs_give_ratio_one_and_kl_zero_exactly():
    logprobs = torch.linspace(-9, -0.01, 50, requires_grad=True)
    weight = torch.full((50,), 0.02, dtype=torch.float64)
    sums = loss_of(logprobs, logprobs.detach(), logprobs.detach(), torch.ones(50), weight)
    assert sums.ratio == sums.weight and sums.mean("ratio") == 1.0
    assert sums.mean("kl") == 0.0 and sums.mean("cut") == 0.0


def test_micro_batches_add_up():
    generator = torch.Generator().manual_seed(3)
    vectors = list(torch.randn(5, 10, generator=generator, dtype=torch.float64).unbind(0))
    vectors[4] = vectors[4].abs()
    whole = loss_of(*vectors)
    halves = [loss_of(*[v[part] for v in vectors]) for part in (slice(0, 3), slice(3, 10))]
    summed = halves[0] + halves[1]
    for name in LossOutputs.__slots__:
        torch.testing.assert_close(getattr(summed, name), getattr(whole, name))


def test_nothing_scored_gives_zero_loss_and_zero_means():
    empty = torch.zeros(0, requires_grad=True)
    sums = loss_of(empty, empty, empty.detach(), empty.detach(), empty.detach())
    sums.loss.backward()
    assert sums.loss == 0 and sums.mean("ratio") == 0.0


def test_a_huge_log_ratio_stays_finite():
    sums = loss_of(torch.tensor([0.0]), torch.tensor([-500.0]), None, torch.tensor([-1.0]), torch.tensor([1.0]))
    assert sums.loss.item() == pytest.approx(math.exp(3) * (1 + 17), rel=1e-5)


@pytest.mark.parametrize("difference", [30.0, -30.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_token_far_from_the_old_policy_has_no_gradient(difference, advantage):
    def value_of(logprobs):
        old = torch.tensor([-50.0 - difference]).double()
        return loss_of(logprobs, old, None, torch.tensor([advantage]).double(), torch.ones(1)).loss

    logprobs = torch.tensor([-50.0], dtype=torch.float64, requires_grad=True)
    value_of(logprobs).backward()
    assert logprobs.grad.item() == 0.0
    with torch.no_grad():
        assert value_of(logprobs + 1e-3) == value_of(logprobs - 1e-3)


def test_clamped_fraction_is_the_weight_of_the_tokens_far_from_old_or_reference():
    logprobs = torch.tensor([-1.0, -30.0, -1.0, -45.0]).double()
    old = torch.tensor([-2.0, -5.0, -20.9, -45.0]).double()
    ref = torch.tensor([-1.0, -30.0, -22.0, -1.0]).double()
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    sums = loss_of(logprobs, old, ref, torch.ones(4).double(), weight)
    assert sums.mean("clamped") == pytest.approx(0.2 + 0.3 + 0.4)
    assert sums.num_bounded == 3
    sums = loss_of(logprobs, old, None, torch.ones(4).double(), weight)
    assert sums.mean("clamped") == pytest.approx(0.2)
    assert sums.num_bounded == 2


@pytest.mark.parametrize("log_ratio", [2.0, 3.5, 8.0, 19.9, 25.0, 400.0])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_one_token_far_off_does_not_outweigh_a_batch(kl, log_ratio):
    far, count = torch.tensor([-5.0, -5.0]).double(), 1000
    logprobs = torch.cat([far, torch.full((count,), -1.0).double()]).requires_grad_()
    old = torch.cat([far - log_ratio, torch.full((count,), -1.0).double()])
    ref = torch.cat([far + log_ratio, torch.full((count,), -1.1).double()])
    advantages = torch.tensor([-1.0, 1.0] * (count // 2 + 1)).double()
    sums = loss_of(logprobs, old, ref, advantages, torch.ones(count + 2).double(), kl=kl)
    sums.loss.backward()
    assert 0 <= logprobs.grad[0] <= 22  # pushed down, as its advantage asks, or not at all
    assert logprobs.grad[:2].abs().sum() < 0.05 * logprobs.grad[2:].abs().sum()


def test_a_penalty_to_the_old_policy_is_the_penalty_to_a_reference_that_is_the_old_policy():
    logprobs, old = torch.tensor([-1.0, -2.0, -0.5]).double(), torch.tensor([-1.5, -1.0, -0.5]).double()
    rest = torch.ones(3).double(), torch.full((3,), 1 / 3).double()
    found, wanted = loss_of(logprobs, old, None, *rest, to="old"), loss_of(logprobs, old, old, *rest)
    assert found.kl == wanted.kl > 0 and found.loss == wanted.loss
    assert found.kl.item() == pytest.approx((math.exp(-0.5) + 0.5 - 1 + math.exp(1) - 1 - 1) / 3)


@pytest.mark.parametrize("place", range(5))
def test_a_vector_of_another_shape_is_named(place):
    name = ("logprobs", "old_logprobs", "logprobs", "advantages", "weight")[place]
    for wrong in (torch.zeros(1), torch.zeros(2, 1)):
        vectors = [wrong if number == place else torch.zeros(2) for number in range(5)]
        with pytest.raises(ValueError, match=f"{name} .*|old_logprobs has shape"):
            loss_of(*vectors)


def test_a_penalty_to_the_reference_needs_its_logprobs():
    loss = make_loss(RatioChoice(), ObjectiveChoice(), KlChoice(coef=0.1))
    with pytest.raises(ValueError, match="there are no ref_logprobs"):
        loss(torch.zeros(2), torch.zeros(2), None, torch.zeros(2), torch.zeros(2), torch.zeros(2))


def test_a_clip_without_width_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        Clipped(clip_eps=0.0)
