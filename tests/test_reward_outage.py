"""What a reward that is logged only may do to a run when it is down: nothing but a warning and a metric."""

import logging
from pathlib import Path

import numpy as np
import pytest
from reward_rollouts import rollout

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.rewards.runtime.isolation import RewardOutageError
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rewards.runtime.process import RewardLoadError
from unigrpo.rewards.runtime.reward_checks import composition_problems, logged_only
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent / "reward_specimens.py"
STEP = [rollout("x" * number, number=number) for number in range(1, 9)]


def specimen(name: str, **settings: object) -> RewardSettings:
    return RewardSettings(use=f"{SPECIMENS}:{name}", **({"timeout_s": 20.0} | settings))


def outages_said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "this is said once" in record.getMessage()]


@pytest.mark.parametrize("fraction", [{}, {"max_failed_fraction": 0.4}], ids=["default", "explicit"])
def test_an_outage_at_weight_0_is_a_metric_and_one_warning_with_three_samples(
    caplog: pytest.LogCaptureFixture, fraction: dict[str, float]
) -> None:
    settings = {"held_out": specimen("always_raises", weight=0.0, **fraction), "length": specimen("length")}
    with caplog.at_level(logging.WARNING), RewardPool(settings) as pool:
        for _ in range(2):
            scored = pool.score(STEP)
            table = scored.table
            assert scored.metrics["reward/held_out/outage"] == 1.0
    assert (table.status[:, 0] == RewardStatus.ERROR).all()
    assert table.total.tolist() == [number / 100 for number in range(1, 9)]
    (said,) = outages_said(caplog)
    assert "reward 'held_out' failed on" in said
    assert said.count("server is down") == 3


def test_a_reward_of_weight_0_that_always_hangs_is_out_after_five_items(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"held_out": specimen("always_hangs", weight=0.0, timeout_s=0.2), "length": specimen("length")}
    rows = [rollout("x", number=number) for number in range(40)]
    with RewardPool(settings, max_failed_fraction=1.0) as pool:
        scored = pool.score(rows)
        table = scored.table
        assert scored.metrics["reward/held_out/outage"] == 1.0
    assert np.bincount(table.status[:, 0], minlength=5)[RewardStatus.TIMEOUT] == 5
    assert (table.status[:, 0] == RewardStatus.ERROR).sum() == 35
    (said,) = outages_said(caplog)
    assert "gave no answer for 5 single items in a row" in said


def test_what_was_scored_before_the_outage_is_kept_and_the_reward_is_asked_again_in_the_next_step() -> None:
    settings = {"held_out": specimen("raise_on_bomb", weight=0.0, batch_size=1), "length": specimen("length")}
    bombs = [rollout(text, number=number) for number, text in enumerate(["x", *["bomb"] * 4, "y"])]
    with RewardPool(settings) as pool:
        table = pool.score(bombs).table
        assert table.status[:, 0].tolist() == [RewardStatus.OK, *[RewardStatus.ERROR] * 5]
        scored = pool.score(STEP)
        assert (scored.table.status[:, 0] == RewardStatus.OK).all()
        assert scored.metrics["reward/held_out/outage"] == 0.0


def test_a_reward_of_weight_0_that_cannot_be_made_again_is_out_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "once.py").write_text(
        "import os\nfrom pathlib import Path\nMARKER = Path(__file__).with_name('made')\n"
        "class Once:\n"
        "    def __init__(self):\n        MARKER.open('x').close()\n"
        "    def __call__(self, completions, **columns):\n        os._exit(1)\n"
    )
    settings = {"held_out": RewardSettings(use=f"{tmp_path}/once.py:Once", weight=0.0), "length": specimen("length")}
    with RewardPool(settings) as pool:
        for _ in range(2):
            assert (pool.score(STEP).table.status[:, 0] == RewardStatus.ERROR).all()
    (said,) = outages_said(caplog)
    assert "could not be made: FileExistsError" in said
    with pytest.raises(RewardLoadError), RewardPool(settings) as pool:
        pool.score(STEP)


def test_a_gate_of_an_optimized_reward_stops_the_run_whatever_its_weight() -> None:
    settings = {
        "gate": specimen("always_raises", weight=0.0),
        "between": specimen("length", weight=0.0, gate=["gate"]),
        "length": specimen("length", gate=["between"]),
    }
    assert logged_only(settings) == frozenset()
    assert logged_only({**settings, "length": specimen("length")}) == {"gate", "between"}
    with pytest.raises(RewardOutageError, match="'gate' failed on 3 of 8"), RewardPool(settings) as pool:
        pool.score(STEP)


def test_a_wrong_number_of_values_stops_the_run_at_weight_0_too() -> None:
    with pytest.raises(RewardContractError), RewardPool({"it": specimen("one_too_many", weight=0.0)}) as pool:
        pool.score(STEP)


def test_a_wrong_number_of_values_of_one_worker_stops_the_run_though_the_other_is_down() -> None:
    settings = {"it": specimen("raise_or_too_many", weight=0.0, num_workers=2)}
    rows = [rollout(text, number=number) for number, text in enumerate(["bomb", "x"] * 8)]
    with pytest.raises(RewardContractError), RewardPool(settings) as pool:
        pool.score(rows)


def test_on_error_raise_is_refused_at_weight_0_and_taken_for_a_gate() -> None:
    held_out = specimen("length", weight=0.0, on_error="raise")
    problems = composition_problems({"held_out": held_out})
    assert problems == [
        "rewards.held_out.on_error: raise on weight 0, which is logged only and may stop nothing; wanted mask"
    ]
    assert composition_problems({"held_out": held_out, "length": specimen("length", gate=["held_out"])}) == []
