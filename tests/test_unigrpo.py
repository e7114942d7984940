import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.methods.estimators.base import Estimator
from unigrpo.methods.estimators.unigrpo import UniGRPO, noise, timesteps
from unigrpo.types import Batch

INPUTS = np.load("tests/golden/losses/unigrpo_paper/inputs.npz")
MASK = 99
NUM_ROWS, PROMPT, LENGTH = 6, 3, 40


def make_batch(num_rows=NUM_ROWS, length=LENGTH, padding=0, first_seed=100):
    """Rows of a prompt, a completion that differs in length by row, and a tail."""
    shape = (num_rows, length + padding)
    place, row = torch.arange(shape[1])[None], torch.arange(num_rows)[:, None]
    is_padding = (place >= length).expand(shape)
    is_prompt = (place < PROMPT).expand(shape)
    is_completion = (place >= PROMPT) & (place < length - 3 * row) & ~is_padding
    return Batch(
        token_ids=(place + row) % 50,
        is_prompt=is_prompt,
        is_completion=is_completion,
        is_tail=~is_prompt & ~is_completion & ~is_padding,
        is_padding=is_padding,
        range_index=torch.zeros(shape, dtype=torch.int64),
        ranges=(None,),
        advantages=torch.zeros(num_rows, dtype=torch.float64),
        group_ids=torch.zeros(num_rows, dtype=torch.int64),
        row_seeds=torch.arange(num_rows) + first_seed,
        lengths=torch.full((num_rows,), length),
        prompt_lengths=torch.full((num_rows,), PROMPT),
        committed_step=torch.where(is_prompt | is_padding, -1, 0).int(),
        committed_logprobs=torch.zeros(shape),
    )


@pytest.mark.parametrize("spacing", ["even", "alg1"])
def test_golden_timesteps(spacing):
    expected = INPUTS[f"{spacing}__t"]
    got = timesteps(torch.from_numpy(expected[0]), 4, 1000, spacing)
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("spacing", ["even", "alg1"])
def test_the_papers_worked_example(spacing):
    got = timesteps(torch.tensor([100]), 5, 1000, spacing)[:, 0]
    np.testing.assert_array_equal(got.numpy(), INPUTS[f"schedule_example_{spacing}"])


@pytest.mark.parametrize("spacing", ["even", "alg1"])
def test_golden_masks(spacing):
    is_valid = torch.from_numpy(INPUTS["valid_to_first_eos"]).bool()
    for update in range(4):
        ratio = torch.from_numpy(INPUTS[f"{spacing}__t"][update]).double() / 1000
        uniforms = torch.from_numpy(INPUTS[f"{spacing}__uniforms"][update])
        is_masked = noise(uniforms, ratio, torch.ones_like(is_valid))
        np.testing.assert_array_equal(is_masked.numpy(), INPUTS[f"{spacing}__masked"][update])
        np.testing.assert_array_equal((is_masked & is_valid).numpy(), INPUTS[f"{spacing}__scored"][update])


@given(start=st.integers(0, 999), num_updates=st.integers(1, 16))
def test_even_spacing_covers_the_circle_and_alg1_ends_at_the_top(start, num_updates):
    even = timesteps(torch.tensor([start]), num_updates, 1000, "even")[:, 0]
    assert even[0] == start and (even >= 0).all() and (even < 1000).all()
    gaps = even.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1000 / num_updates))
    alg1 = timesteps(torch.tensor([start]), num_updates, 1000, "alg1")[:, 0]
    assert alg1[0] == start and (alg1.diff() >= 0).all()
    assert alg1[-1] == (1000 if num_updates > 1 else start)


@pytest.mark.parametrize("spacing", ["even", "alg1", "random"])
def test_same_draw_twice_gives_the_same_masks_and_leaves_the_generators_alone(spacing):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    estimator, batch = UniGRPO(spacing=spacing), make_batch()
    one, again = (estimator.draw(batch, 3, 1, 4, MASK) for _ in range(2))
    for name in ("noisy_ids", "is_scored", "weight", "rollout_index", "mask_ratio"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_padding_neighbors_and_order_do_not_change_a_row():
    estimator = UniGRPO()
    whole = estimator.draw(make_batch(), 0, 1, 2, MASK)
    padded = estimator.draw(make_batch(padding=5), 0, 1, 2, MASK)
    assert torch.equal(padded.is_scored[:, :LENGTH], whole.is_scored)
    alone = estimator.draw(make_batch(num_rows=1), 0, 1, 2, MASK)
    assert torch.equal(alone.noisy_ids[0], whole.noisy_ids[0])
    batch = make_batch()
    fields = {name: getattr(batch, name) for name in Batch.__slots__}
    flipped = Batch(**{name: v.flip(0) if isinstance(v, torch.Tensor) else v for name, v in fields.items()})
    assert torch.equal(estimator.draw(flipped, 0, 1, 2, MASK).noisy_ids.flip(0), whole.noisy_ids)


def test_every_step_and_update_has_a_fresh_mask():
    batch, estimator = make_batch(), UniGRPO()
    draws = [estimator.draw(batch, step, update, 2, MASK).noisy_ids for step in range(3) for update in range(2)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 6


def test_only_open_positions_are_noised_and_only_the_completion_is_scored():
    batch = make_batch(padding=2)
    for update in range(4):
        draw = UniGRPO(spacing="alg1").draw(batch, 0, update, 4, MASK)
        is_masked = draw.noisy_ids == MASK
        assert not (is_masked & (batch.is_prompt | batch.is_padding)).any()
        assert torch.equal(draw.is_scored, is_masked & batch.is_completion)
        assert torch.equal(torch.where(is_masked, batch.token_ids, draw.noisy_ids), batch.token_ids)
    assert is_masked[batch.is_tail].all() and (draw.mask_ratio == 1).all()


@pytest.mark.parametrize("normalizer", ["scored", "completion"])
def test_weights_average_over_the_tokens_of_a_response_then_over_all_responses(normalizer):
    batch = make_batch(num_rows=12)
    draw = UniGRPO(normalizer=normalizer, num_timesteps=10).draw(batch, 0, 0, 1, MASK)
    num_empty = 0
    for row in range(12):
        scored, length = draw.is_scored[row].sum().item(), batch.is_completion[row].sum().item()
        num_empty += scored == 0
        for place in range(LENGTH):
            count = scored if normalizer == "scored" else length
            expected = 1 / (count * 12) if draw.is_scored[row, place] else 0.0
            assert draw.weight[row, place].item() == pytest.approx(expected)
    assert draw.num_empty == num_empty > 0


def test_a_response_at_timestep_zero_adds_nothing_and_is_counted():
    draw = UniGRPO(num_timesteps=1).draw(make_batch(), 0, 0, 1, MASK)
    assert draw.num_empty == NUM_ROWS and draw.weight.sum() == 0 and (draw.noisy_ids != MASK).all()


def test_mask_ratios_are_uniform_and_masks_follow_them():
    batch = make_batch(num_rows=1, length=40)
    fields = {name: getattr(batch, name) for name in Batch.__slots__}
    many = {name: v.expand(4000, *v.shape[1:]) if isinstance(v, torch.Tensor) else v for name, v in fields.items()}
    many["row_seeds"] = torch.arange(4000)
    for spacing in ("even", "random"):
        draw = UniGRPO(spacing=spacing).draw(Batch(**many), 5, 1, 3, MASK)
        quantiles = torch.tensor([0.1, 0.5, 0.9]).double()
        torch.testing.assert_close(draw.mask_ratio.quantile(quantiles), quantiles, atol=0.03, rtol=0)
        observed = (draw.noisy_ids == MASK)[:, PROMPT:].double().mean(1)
        assert (observed - draw.mask_ratio).mean().abs() < 5e-3
        assert (observed - draw.mask_ratio).std() < 0.1


def test_it_is_an_estimator_and_refuses_what_it_does_not_know():
    assert isinstance(UniGRPO(), Estimator)
    with pytest.raises(ValueError, match="'even', 'alg1' or 'random'"):
        UniGRPO(spacing="odd")
    with pytest.raises(ValueError, match="'scored' or 'completion'"):
        UniGRPO(normalizer="length")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        UniGRPO(num_timesteps=0)
    with pytest.raises(ValueError, match="updates count from 0"):
        UniGRPO().draw(make_batch(), 0, 2, 2, MASK)
