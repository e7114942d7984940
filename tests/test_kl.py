import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.methods.kl.k1 import K1
from unigrpo.methods.kl.k2 import K2
from unigrpo.methods.kl.k3 import K3

KL = {"k1": K1(), "k2": K2(), "k3": K3()}


def test_hand_worked_values():
    logprobs, ref = torch.tensor([math.log(0.5)]).double(), torch.tensor([math.log(0.25)]).double()
    assert KL["k1"](logprobs, ref).item() == pytest.approx(math.log(2))
    assert KL["k2"](logprobs, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert KL["k3"](logprobs, ref).item() == pytest.approx(0.5 - math.log(0.5) - 1)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_mean_over_the_policy_is_the_exact_kl(kind):
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * KL[kind](policy, reference)).sum(), exact)


def test_k2_is_the_kl_to_second_order():
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
    reference = (policy + 1e-3 * torch.randn(9, generator=generator, dtype=torch.float64)).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * KL["k2"](policy, reference)).sum(), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_equal_distributions_give_exactly_zero(kind):
    logprobs = torch.linspace(-12, 0, 7)
    assert (KL[kind](logprobs, logprobs.clone()) == 0).all()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_equals_finite_differences_and_skips_the_reference(kind):
    logprobs = torch.linspace(-3, -0.1, 6, dtype=torch.float64, requires_grad=True)
    ref = torch.linspace(-1, -2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: KL[kind](value, ref.detach()), (logprobs,))
    KL[kind](logprobs, ref).sum().backward()
    assert ref.grad is None


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_a_vanished_token_stays_finite(kind):
    assert torch.isfinite(KL[kind](torch.tensor([-200.0]), torch.tensor([0.0]))).all()


HIGHEST = {"k1": 20.0, "k2": 4.5 + 3 * 17, "k3": math.exp(3) * (1 + 17) - 20 - 1}
STEEPEST = {"k1": 1.0, "k2": 3.0, "k3": math.exp(3) - 1}


def of_difference(kind, difference):
    """The estimate and its slope where the reference is ``difference`` nats above the policy."""
    logprobs = torch.tensor([-40.0], dtype=torch.float64, requires_grad=True)
    value = KL[kind](logprobs, torch.tensor([-40.0 + difference], dtype=torch.float64))
    value.sum().backward()
    return value.item(), logprobs.grad.item()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("difference", [30.0, -30.0, 1000.0, -1000.0])
def test_beyond_the_clamp_the_gradient_is_zero(kind, difference):
    edge = math.copysign(20.0, difference)
    side = {"k1": -edge, "k2": HIGHEST["k2"], "k3": HIGHEST["k3"] if edge > 0 else math.exp(edge) - edge - 1}
    value, slope = of_difference(kind, difference)
    assert value == pytest.approx(side[kind], rel=1e-12) and slope == 0.0


@pytest.mark.parametrize("difference", [19.9, -19.9, 5.0, -5.0, 3.1, 2.9, -2.9, 0.5, -0.5])
def test_up_to_the_clamp_the_gradient_points_to_the_reference(difference):
    near = max(-3.0, min(3.0, difference))
    for kind, slope in (("k2", -near), ("k3", 1 - math.exp(min(3.0, difference)))):
        found = of_difference(kind, difference)[1]
        assert found == pytest.approx(slope)
        assert math.copysign(1, found) == -math.copysign(1, difference)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("difference", [3.0, -3.0, 20.0, -20.0])
def test_at_its_edges_an_estimate_is_continuous_and_never_pushes_away(kind, difference):
    def value_of(distance):
        return KL[kind](torch.tensor([-distance], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)).item()

    step = 1e-6
    below, at, above = (value_of(difference + part) for part in (-step, 0.0, step))
    slopes = (at - below) / step, (above - at) / step
    for slope in slopes:  # per nat of distance above: a penalty rises away from 0, k1 falls with it; or they are flat
        if kind == "k1":
            assert -1 - 1e-3 <= slope <= 1e-3
        else:
            assert -1e-3 <= slope * math.copysign(1, difference) <= STEEPEST[kind] + 1e-3
    inner = slopes[0 if difference > 0 else 1]
    assert of_difference(kind, difference)[1] == pytest.approx(-inner, abs=1e-3)


@pytest.mark.parametrize("kind", ["k2", "k3"])
@given(near=st.floats(0, 1e4), further=st.floats(0, 1e4), is_above=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_penalty_grows_with_the_distance_and_is_bounded(kind, near, further, is_above):
    sign = 1 if is_above else -1
    (low, low_slope), (high, high_slope) = (of_difference(kind, sign * part) for part in sorted((near, further)))
    assert -1e-12 <= low <= high + 1e-12 and high <= HIGHEST[kind] + 1e-9
    assert max(abs(low_slope), abs(high_slope)) <= STEEPEST[kind] + 1e-9
    assert low_slope * sign <= 0 and high_slope * sign <= 0


def test_wrong_arguments_are_named():
    for kl in KL.values():
        with pytest.raises(ValueError, match=r"other_logprobs has shape \(1,\), logprobs \(2,\)|logprobs has shape"):
            kl(torch.zeros(2), torch.zeros(1))
        with pytest.raises(ValueError, match=r"has shape \(2, 1\); wanted \[S\]"):
            kl(torch.zeros(2, 1), torch.zeros(2, 1))
