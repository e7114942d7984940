"""Routers and the grouped sum, against a token-by-token loop and numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from unigrpo.models.layers.experts import ExpertMixture, GroupedSigmoidRouter, SoftmaxRouter, mix
from unigrpo.models.layers.swiglu import SwiGlu

WIDTH, INNER, EXPERTS, CHOSEN = 12, 8, 6, 3


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def hidden_states(num_tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def slow_mix(hidden: torch.Tensor, experts: nn.ModuleList, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows = []
    for token, state in enumerate(hidden):
        row = torch.zeros_like(state)
        for place, number in enumerate(chosen[token].tolist()):
            expert = experts[number]
            gate, up = expert.gate_proj.weight @ state, expert.up_proj.weight @ state
            row = row + weights[token, place] * (expert.down_proj.weight @ (gate * gate.sigmoid() * up))
        rows.append(row)
    return torch.stack(rows)


def test_grouped_sum_and_its_gradients_equal_a_slow_loop() -> None:
    experts = filled(nn.ModuleList(SwiGlu(WIDTH, INNER) for _ in range(EXPERTS))).double()
    router = filled(SoftmaxRouter(WIDTH, EXPERTS, CHOSEN), seed=2).double()
    gradients = []
    for function in (mix, slow_mix):
        hidden = hidden_states(17).double().requires_grad_()
        chosen, weights = router(hidden)
        weights = weights.double()
        result = function(hidden, experts, chosen, weights)
        parameters = [hidden, *experts.parameters(), router.weight]
        found = torch.autograd.grad((result * hidden_states(17, seed=3).double()).sum(), parameters)
        gradients.append((result, *found))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0)


@torch.no_grad()
def test_experts_that_no_token_chose_do_not_run() -> None:
    experts = filled(nn.ModuleList(SwiGlu(WIDTH, INNER) for _ in range(EXPERTS)))
    calls: list[int] = []
    for number, expert in enumerate(experts):
        expert.register_forward_hook(lambda _module, _inputs, output, number=number: calls.append(number))
    chosen = torch.tensor([[4, 1], [1, 4], [4, 1]])
    mixed = mix(hidden_states(3), experts, chosen, torch.full((3, 2), 0.5))
    assert calls == [1, 4]
    torch.testing.assert_close(mixed, slow_mix(hidden_states(3), experts, chosen, torch.full((3, 2), 0.5)))


@torch.no_grad()
def test_softmax_router_gives_the_highest_probabilities_as_they_are() -> None:
    router = SoftmaxRouter(2, 4, 2)
    router.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    experts, weights = router(torch.tensor([[1.0, 5.0]]))
    wanted = functional.softmax(torch.arange(4.0), dim=0)
    assert experts.tolist() == [[3, 2]]
    torch.testing.assert_close(weights, wanted[[3, 2]][None])
    assert float(weights.sum()) < 0.9, "not renormalised"


@torch.no_grad()
def test_grouped_router_takes_the_best_pair_of_a_group_and_leaves_the_bias_out_of_the_weights() -> None:
    router = GroupedSigmoidRouter(1, 6, 2, num_groups=3, num_chosen_groups=1, scale=2.5)
    # Scores by hand: expert 0 is the best alone, but the pair 2, 3 is the best group once the bias is added.
    logits = torch.tensor([2.0, -9.0, 1.0, 0.5, 0.0, 0.0])
    router.weight.copy_(logits[:, None])
    router.expert_bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.2, 0.0, 0.0]))
    experts, weights = router(torch.ones(1, 1))
    scores = logits.sigmoid()
    assert experts.tolist() == [[3, 2]]  # 0.62 + 0.2 before 0.73
    torch.testing.assert_close(weights, (scores[[3, 2]] / scores[[2, 3]].sum() * 2.5)[None])


@torch.no_grad()
def test_a_token_is_mixed_alike_alone_and_among_others() -> None:
    mixture = filled(ExpertMixture(SoftmaxRouter(WIDTH, EXPERTS, CHOSEN), WIDTH, INNER, EXPERTS, shared_inner=5))
    together = mixture(hidden_states(20).view(2, 10, WIDTH))
    alone = mixture(hidden_states(20)[7:8])
    torch.testing.assert_close(together[0, 7:8], alone, atol=1e-4, rtol=1e-5)
    assert {name.split(".")[0] for name, _ in mixture.named_parameters()} == {"gate", "experts", "shared_experts"}


def test_the_bias_is_saved_and_does_not_train() -> None:
    router = GroupedSigmoidRouter(4, 8, 2, num_groups=4, num_chosen_groups=2, scale=1.0)
    assert list(router.state_dict()) == ["weight", "expert_bias"]
    assert [name for name, _ in router.named_parameters()] == ["weight"]


@pytest.mark.parametrize(("groups", "chosen_groups", "chosen"), [(4, 2, 2), (3, 4, 2), (3, 1, 3), (3, 1, 0)])
def test_sizes_that_do_not_fit_are_refused(groups: int, chosen_groups: int, chosen: int) -> None:
    with pytest.raises(ValueError, match="wanted"):
        GroupedSigmoidRouter(4, 6, chosen, num_groups=groups, num_chosen_groups=chosen_groups, scale=1.0)


ROUTERS = {
    "softmax": lambda: SoftmaxRouter(16, EXPERTS, CHOSEN),
    "grouped": lambda: GroupedSigmoidRouter(16, EXPERTS, CHOSEN, num_groups=3, num_chosen_groups=2, scale=2.5),
}


def packed_and_loose(router: str) -> tuple[ExpertMixture, ExpertMixture]:
    pair = [filled(ExpertMixture(ROUTERS[router](), 16, INNER, EXPERTS, shared_inner=4)) for _ in range(2)]
    for mixture in pair:
        mixture.experts.requires_grad_(False)
    assert pair[0].pack()
    return pair[0], pair[1]


@pytest.mark.parametrize("router", ROUTERS)
def test_packed_experts_give_the_sum_and_the_gradients_of_loose_ones(router: str) -> None:
    found = []
    for mixture in packed_and_loose(router):
        hidden = torch.randn(2, 15, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        result = mixture(hidden)
        wanted = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
        parameters = [hidden, mixture.gate.weight, *mixture.shared_experts.parameters()]
        found.append((result, *torch.autograd.grad((result * wanted).sum(), parameters)))
    for packed, loose in zip(*found, strict=True):
        torch.testing.assert_close(packed, loose, atol=1e-4, rtol=1e-5)


def test_packed_experts_keep_names_values_and_files(tmp_path: Path) -> None:
    packed, loose = packed_and_loose("softmax")
    assert list(packed.state_dict()) == list(loose.state_dict())
    save_file(packed.state_dict(), tmp_path / "packed.safetensors")
    for name, tensor in load_file(tmp_path / "packed.safetensors").items():
        assert torch.equal(tensor, loose.state_dict()[name])


@torch.no_grad()
def test_packed_experts_follow_new_values_and_step_aside_for_other_weights() -> None:
    packed, loose = packed_and_loose("softmax")
    calls: list[int] = []
    packed.experts[0].register_forward_hook(lambda *_: calls.append(0))
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    values = filled(ExpertMixture(ROUTERS["softmax"](), 16, INNER, EXPERTS, shared_inner=4), seed=9).state_dict()
    for mixture in (packed, loose):
        mixture.load_state_dict(values)
    torch.testing.assert_close(packed(hidden), loose(hidden), atol=1e-4, rtol=1e-5)
    assert not calls, "packed"
    packed.double()  # gives every parameter a tensor of its own
    torch.testing.assert_close(packed(hidden.double()), loose.double()(hidden.double()))
    assert calls, "expert by expert"


def test_experts_that_train_run_one_by_one_so_that_each_gets_its_gradient() -> None:
    packed, _ = packed_and_loose("softmax")
    packed.experts.requires_grad_(True)
    packed(torch.randn(40, 16, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all(parameter.grad is not None for parameter in packed.experts.parameters())


def test_widths_that_the_kernel_does_not_take_stay_loose() -> None:
    assert not ExpertMixture(SoftmaxRouter(WIDTH, 2, 1), WIDTH, 3, 2).pack()


@pytest.mark.parametrize("place", range(EXPERTS))
def test_an_adapter_on_any_expert_counts(place: int) -> None:
    packed, loose = packed_and_loose("softmax")
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    for mixture in (packed, loose):
        expert = mixture.experts[place]
        expert.up_proj = nn.Sequential(expert.up_proj, filled(nn.Linear(INNER, INNER), seed=7))
    results = packed(hidden), loose(hidden)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)
    assert all(result.requires_grad for result in results)


@pytest.mark.parametrize("place", range(EXPERTS))
def test_any_expert_that_trains_gets_its_gradient(place: int) -> None:
    packed, _ = packed_and_loose("softmax")
    packed.experts[place].requires_grad_(True)
    packed(torch.randn(40, 16, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all(weight.grad is not None for weight in packed.experts[place].parameters())


@torch.no_grad()
@pytest.mark.parametrize("place", range(EXPERTS))
def test_new_weights_of_any_expert_count(place: int) -> None:
    packed, loose = packed_and_loose("softmax")
    for mixture in (packed, loose):
        mixture.experts[place].down_proj.weight.data = torch.ones(16, INNER)
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(hidden), loose(hidden), atol=1e-4, rtol=1e-5)
