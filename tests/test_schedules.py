import json
from pathlib import Path

import pytest
import torch

from unigrpo.rollouts.schedules.counts import linear_counts, picture_count, remasking_temperatures

GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"


def test_linear_counts_equal_the_reference():
    for key, expected in json.loads((GOLDEN / "num_transfer_tokens.json").read_text()).items():
        num_masked, num_steps = (int(part) for part in key.split("_"))
        counts = linear_counts(torch.tensor([num_masked]), num_steps)
        assert counts[0].tolist() == torch.tensor(expected).flatten().tolist()


def test_cosine_counts_and_remasking_temperatures_equal_the_reference():
    golden = json.loads((GOLDEN / "cosine_schedule_counts.json").read_text())
    for key, expected in golden.items():
        num_positions, num_steps = (int(part[1:]) for part in key.split("_"))
        masked = torch.tensor([num_positions])
        for step, after in enumerate(expected["masked_after_step"][:-1]):
            masked = masked - picture_count(masked, num_positions, step, num_steps)
            assert masked.item() == after
        assert remasking_temperatures(1.0, num_steps) == pytest.approx(expected["remask_temperature_for_start_1"])


@pytest.mark.parametrize("num_masked", [0, 1, 5, 16])
def test_cosine_fills_everything_by_its_last_step(num_masked):
    masked = torch.tensor([num_masked])
    for step in range(20):
        masked = masked - picture_count(masked, 16, step, 20)
        assert masked.item() >= 0
    assert masked.item() == 0
