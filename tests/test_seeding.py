import torch

from unigrpo.seeding import fold, uniform


def splitmix_finaliser(z: int) -> int:
    z &= 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_uniform_equals_the_same_formula_in_python_integers():
    gamma = 0x9E3779B97F4A7C15
    drawn = uniform(torch.tensor([5, 2**62]), 3, torch.arange(4))
    for row, key in enumerate((5, 2**62)):
        for position in range(4):
            state = splitmix_finaliser(key + gamma * 7)
            bits = splitmix_finaliser(state + (position + 1) * gamma) >> 11
            assert drawn[row, position].item() == (bits + 0.5) * 2.0**-53


def test_uniform_is_uniform_and_uncorrelated_between_rows_steps_and_positions():
    drawn = uniform(torch.arange(400), 0, torch.arange(400))
    counts = torch.histc(drawn.float(), bins=20, min=0, max=1)
    assert ((counts - 8000).abs() < 5 * 8000**0.5).all()
    for other in (drawn.roll(1, 0), drawn.roll(1, 1), uniform(torch.arange(400), 1, torch.arange(400))):
        correlation = torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 5 / 400


def test_uniform_does_not_depend_on_neighbors_or_padding():
    alone = uniform(torch.tensor([7]), 2, torch.arange(3))
    together = uniform(torch.tensor([1, 7]), 2, torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]]))
    assert torch.equal(alone[0], together[1, 1:])


def test_uniform_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    uniform(torch.tensor([1]), 0, torch.arange(8))
    assert torch.equal(before, torch.get_rng_state())


def test_fold_tells_types_order_and_boundaries_apart():
    seeds = [fold(1, 2), fold(2, 1), fold("1", 2), fold(12), fold("12"), fold("a", "b"), fold("ab")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
