"""One optimizer for both stages: what it decays, its rate, and a state that goes on where it stopped."""

import pytest
import torch

from unigrpo.learner.optimizer import Optimizer, learning_rate
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.sft import SftRecipe

SFT = {"name": "x", "num_steps": 10, "policy": {"path": "x"}, "tasks": {}}


def make_module():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    for number, weight in enumerate(module.parameters()):
        weight.data = torch.arange(1.0, weight.numel() + 1).reshape(weight.shape) + number
    return module


def take(module, optimizer, step):
    for number, weight in enumerate(module.parameters()):
        weight.grad = torch.full_like(weight, 0.1 * (number + 1) * (-1) ** step)
    optimizer.update(step)
    optimizer.clear_gradients()


def test_an_empty_state_forgets_the_moments_that_were_there():
    module = make_module()
    optimizer = Optimizer(module, LearnerSettings(lr=0.1), num_steps=10)
    empty = optimizer.state()
    take(module, optimizer, 0)
    assert optimizer.state()
    optimizer.load_state(empty)
    assert optimizer.state() == {}


@pytest.mark.parametrize("settings", [LearnerSettings, lambda **values: SftRecipe(**SFT, **values)])
def test_matrices_are_decayed_and_vectors_are_not_in_both_stages(settings):
    module = make_module()
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = Optimizer(module, settings(lr=0.1, weight_decay=0.5, lr_schedule="constant"), num_steps=10)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.update(0)
    for name, weight in module.named_parameters():
        shrunk = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(weight.detach(), before[name] * shrunk)


@pytest.mark.parametrize(
    ("schedule", "wanted"), [("constant", [1.0, 2.0, 2.0, 2.0]), ("cosine", [1.0, 1.9511, 1.0, 0.0489])]
)
def test_the_rate_is_a_warm_up_times_half_a_cosine_over_all_steps_in_both_stages(schedule, wanted):
    values = {"lr": 2.0, "lr_schedule": schedule, "warmup_steps": 2}
    for settings in (LearnerSettings(**values), SftRecipe(**SFT, **values)):
        assert [learning_rate(settings, step, 10) for step in (0, 1, 5, 9)] == pytest.approx(wanted, abs=1e-4)


def test_an_update_takes_the_rate_of_its_step():
    module = make_module()
    optimizer = Optimizer(module, LearnerSettings(lr=0.5, warmup_steps=5, lr_schedule="constant"), num_steps=10)
    before = module[0].weight.detach().clone()
    take(module, optimizer, 0)
    # AdamW's first step is the rate times the sign of the gradient.
    torch.testing.assert_close(before - module[0].weight.detach(), torch.full((2, 2), 0.1), atol=1e-5, rtol=0)


def test_a_restored_state_goes_on_bit_for_bit():
    settings = LearnerSettings(lr=0.1, weight_decay=0.1)
    module, other = make_module(), make_module()
    optimizer = Optimizer(module, settings, 10)
    for step in range(3):
        take(module, optimizer, step)
    other.load_state_dict(module.state_dict())
    state = optimizer.state()
    assert {key.partition(":")[0] for key in state} == {"exp_avg", "exp_avg_sq", "step"}
    restored = Optimizer(other, settings, 10)
    restored.load_state(state)
    take(module, optimizer, 3)
    take(other, restored, 3)
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True))
    assert state["step:0.weight"].item() == 3  # the copy did not move with the optimizer


def test_frozen_weights_are_left_out():
    module = make_module()
    module[1].requires_grad_(False)
    optimizer = Optimizer(module, LearnerSettings(lr=0.1), 10)
    take(module, optimizer, 0)
    assert {key.partition(":")[2] for key in optimizer.state()} == {"0.weight", "0.bias"}


def test_a_long_gradient_is_scaled_to_the_norm_allowed():
    module = torch.nn.Linear(1, 1)
    optimizer = Optimizer(module, LearnerSettings(lr=0.1, max_grad_norm=1.0), 10)
    module.weight.grad, module.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert optimizer.clip_gradients().item() == 5.0
    assert [module.weight.grad.item(), module.bias.grad.item()] == pytest.approx([0.6, 0.8], abs=1e-5)


def test_a_state_of_other_weights_is_refused():
    optimizer = Optimizer(make_module(), LearnerSettings(lr=0.1), 10)
    with pytest.raises(ValueError, match=r"does not train: \['somewhere.else'\]"):
        optimizer.load_state({"exp_avg:somewhere.else": torch.zeros(1)})
