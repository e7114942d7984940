import math

import pytest
import torch

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


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("difference", [30.0, -30.0])
def test_beyond_the_clamp_the_gradient_is_zero(kind, difference):
    logprobs = torch.tensor([-40.0], dtype=torch.float64, requires_grad=True)
    value = KL[kind](logprobs, torch.tensor([-40.0 + difference], dtype=torch.float64))
    edge = math.copysign(20.0, difference)
    expected = {"k1": -edge, "k2": 200.0, "k3": math.exp(edge) - edge - 1}[kind]
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.sum().backward()
    assert logprobs.grad.item() == 0.0


@pytest.mark.parametrize("difference", [19.9, -19.9])
def test_up_to_the_clamp_the_gradient_points_to_the_reference(difference):
    for kind, slope in (("k2", -difference), ("k3", 1 - math.exp(difference))):
        logprobs = torch.tensor([-40.0], dtype=torch.float64, requires_grad=True)
        KL[kind](logprobs, torch.tensor([-40.0 + difference], dtype=torch.float64)).sum().backward()
        assert logprobs.grad.item() == pytest.approx(slope)
        assert math.copysign(1, logprobs.grad.item()) == -math.copysign(1, difference)


def test_wrong_arguments_are_named():
    for kl in KL.values():
        with pytest.raises(ValueError, match=r"other_logprobs has shape \(1,\), logprobs \(2,\)|logprobs has shape"):
            kl(torch.zeros(2), torch.zeros(1))
        with pytest.raises(ValueError, match=r"has shape \(2, 1\); wanted \[S\]"):
            kl(torch.zeros(2, 1), torch.zeros(2, 1))
