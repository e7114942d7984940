import math

import pytest
import torch

from unigrpo.methods.objectives.kl import kl_penalty


def test_hand_worked_values():
    logprobs, ref = torch.tensor([math.log(0.5)]).double(), torch.tensor([math.log(0.25)]).double()
    assert kl_penalty(logprobs, ref, "k1").item() == pytest.approx(math.log(2))
    assert kl_penalty(logprobs, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_penalty(logprobs, ref, "k3").item() == pytest.approx(0.5 - math.log(0.5) - 1)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_mean_over_the_policy_is_the_exact_kl(kind):
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_penalty(policy, reference, kind)).sum(), exact)


def test_k2_is_the_kl_to_second_order():
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
    reference = (policy + 1e-3 * torch.randn(9, generator=generator, dtype=torch.float64)).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_penalty(policy, reference, "k2")).sum(), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_equal_distributions_give_exactly_zero(kind):
    logprobs = torch.linspace(-12, 0, 7)
    assert (kl_penalty(logprobs, logprobs.clone(), kind) == 0).all()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_equals_finite_differences_and_skips_the_reference(kind):
    logprobs = torch.linspace(-3, -0.1, 6, dtype=torch.float64, requires_grad=True)
    ref = torch.linspace(-1, -2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: kl_penalty(value, ref.detach(), kind), (logprobs,))
    kl_penalty(logprobs, ref, kind).sum().backward()
    assert ref.grad is None


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_a_vanished_token_stays_finite(kind):
    assert torch.isfinite(kl_penalty(torch.tensor([-200.0]), torch.tensor([0.0]), kind)).all()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("difference", [30.0, -30.0])
def test_beyond_the_clamp_the_gradient_is_zero(kind, difference):
    logprobs = torch.tensor([-40.0], dtype=torch.float64, requires_grad=True)
    value = kl_penalty(logprobs, torch.tensor([-40.0 + difference], dtype=torch.float64), kind)
    edge = math.copysign(20.0, difference)
    expected = {"k1": -edge, "k2": 200.0, "k3": math.exp(edge) - edge - 1}[kind]
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.sum().backward()
    assert logprobs.grad.item() == 0.0


@pytest.mark.parametrize("difference", [19.9, -19.9])
def test_up_to_the_clamp_the_gradient_points_to_the_reference(difference):
    for kind, slope in (("k2", -difference), ("k3", 1 - math.exp(difference))):
        logprobs = torch.tensor([-40.0], dtype=torch.float64, requires_grad=True)
        kl_penalty(logprobs, torch.tensor([-40.0 + difference], dtype=torch.float64), kind).sum().backward()
        assert logprobs.grad.item() == pytest.approx(slope)
        assert math.copysign(1, logprobs.grad.item()) == -math.copysign(1, difference)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="give k1, k2 or k3"):
        kl_penalty(torch.zeros(2), torch.zeros(2), "k4")
    with pytest.raises(ValueError, match="score the same positions"):
        kl_penalty(torch.zeros(2), torch.zeros(1), "k3")
