import json
from pathlib import Path

import pytest
import torch

from unigrpo.plugin import choice, facts, known_choices
from unigrpo.rollouts.schedules.base import Progress, noise_temperature
from unigrpo.rollouts.schedules.cosine import Cosine
from unigrpo.rollouts.schedules.dream import Dream
from unigrpo.rollouts.schedules.linear import Linear
from unigrpo.rollouts.schedules.shift import Shift

GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"
SCHEDULES, ORDERS = "unigrpo.rollouts.schedules", "unigrpo.rollouts.orders"


def at(start: int, masked: int, step: int, num_steps: int, num_positions: int = 16) -> Progress:
    return Progress(
        num_at_start=torch.tensor([start]),
        num_masked=torch.tensor([masked]),
        num_positions=num_positions,
        step=step,
        num_steps=num_steps,
    )


def counts(schedule, start, num_steps, num_positions=16):
    """What each step commits, where it commits exactly what the schedule says."""
    found, masked = [], start
    for step in range(num_steps):
        found.append(schedule.count(at(start, masked, step, num_steps, num_positions)).item())
        masked -= found[-1]
    return found


def test_linear_counts_equal_the_reference():
    for key, expected in json.loads((GOLDEN / "num_transfer_tokens.json").read_text()).items():
        num_masked, num_steps = (int(part) for part in key.split("_"))
        assert counts(Linear(), num_masked, num_steps) == torch.tensor(expected).flatten().tolist()


def test_cosine_counts_and_remasking_temperatures_equal_the_reference():
    golden = json.loads((GOLDEN / "cosine_schedule_counts.json").read_text())
    for key, expected in golden.items():
        num_positions, num_steps = (int(part[1:]) for part in key.split("_"))
        masked = num_positions - torch.tensor(counts(Cosine(), num_positions, num_steps, num_positions)).cumsum(0)
        assert masked.tolist()[:-1] == expected["masked_after_step"][:-1]
        temperatures = [noise_temperature(Cosine(), 1.0, step, num_steps) for step in range(num_steps)]
        assert temperatures == pytest.approx(expected["remask_temperature_for_start_1"])


def test_dreams_remasking_temperature_stays_and_the_others_fall():
    assert [noise_temperature(Dream(), 0.3, step, 4) for step in range(4)] == [0.3] * 4
    assert [noise_temperature(Linear(), 0.5, step, 4) for step in range(4)] == [0.375, 0.1875, 0.046875, 0.0]


@pytest.mark.parametrize("num_masked", [0, 1, 5, 16])
@pytest.mark.parametrize("name", known_choices(SCHEDULES))
def test_every_schedule_fills_everything_by_its_last_step(name, num_masked):
    found = counts(choice(name, SCHEDULES)(), num_masked, 20)
    assert sum(found) == num_masked
    assert min(found) >= 0


@pytest.mark.parametrize("name", known_choices(SCHEDULES))
def test_the_last_step_commits_every_position_by_itself(name):
    assert choice(name, SCHEDULES)().expected_fraction(at(16, 2, 7, 8)).tolist() == [1.0]


def test_facts_are_read_from_source_and_are_those_of_the_class():
    for folder, names in ((SCHEDULES, ("is_for_pictures", "is_fixed", "is_cooling")), (ORDERS, ("reads",))):
        for use in known_choices(folder):
            for name in names:
                assert facts(use, folder)[name] == getattr(choice(use, folder), name)


@pytest.mark.parametrize("shift", [1e-3, 0.04, 0.1, 0.33, 3.0, 1e3])
def test_a_shifted_curve_that_ends_at_one_up_to_rounding_fills_every_position(shift):
    curve = Shift(shift=shift)
    for total, num_steps in [(1, 4), (32, 2), (64, 2), (256, 8)]:
        counts = curve.counts(torch.tensor([total]), num_steps)
        assert counts.sum() == total and counts.min() >= 0
