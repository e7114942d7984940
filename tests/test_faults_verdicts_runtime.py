"""What the runtime of rewards says and costs when one of them hangs, raises or returns what is no number."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from reward_rollouts import rollout

from unigrpo.plugin import PluginError, resolve
from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent / "reward_specimens.py"
STEP = [rollout("x" * number, number=number) for number in range(1, 9)]


@pytest.mark.parametrize("num_rows", [1, 8])
def test_a_reward_of_weight_0_that_hangs_rests_and_shows_no_value(
    num_rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    hung = RewardSettings(use=f"{SPECIMENS}:always_hangs", weight=0.0, timeout_s=0.15)
    with RewardPool({"hung": hung, "length": RewardSettings(use=f"{SPECIMENS}:length", timeout_s=20.0)}) as pool:
        scored = [pool.score(STEP[:num_rows])]
        num_said = len(caplog.records)
        scored += [pool.score(STEP[:num_rows])]
        assert len(caplog.records) == num_said  # It was not asked, so nothing was waited for.
    for step in scored:
        assert step.metrics["reward/hung/outage"] == 1.0
        assert np.isnan(step.table.values[:, 0]).all()
        assert np.isfinite(step.table.values[:, 1]).all()


def test_a_reward_that_rested_is_asked_again_with_one_item_and_then_with_all(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import time\nfrom pathlib import Path\nMARKER = Path(__file__).with_name('up')\n"
        "def judge(completions, **columns):\n"
        "    while not MARKER.exists():\n        time.sleep(0.01)\n"
        "    return [0.5] * len(completions)\n"
    )
    with RewardPool({"late": RewardSettings(use=f"{tmp_path}/late.py:judge", weight=0.0, timeout_s=0.3)}) as pool:
        assert np.isnan(pool.score(STEP).table.values).all()
        (tmp_path / "up").touch()
        assert pool.score(STEP).metrics["reward/late/outage"] == 1.0
        assert pool.score(STEP).table.values[:, 0].tolist() == [0.5] * 8


def test_an_error_has_one_traceback_with_a_count_and_an_invalid_value_its_type(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "later.py").write_text("def half():\n    return 0.5\n")
    (tmp_path / "odd.py").write_text(
        "from beside import HALF\n"
        "def raises(completions, **columns):\n    raise ValueError(f'no {completions[0]}')\n"
        "def odd(completions, **columns):\n"
        "    import later\n    return [float('nan'), '0.5', [1.0], HALF, later.half(), 1 + 2j, 1.0, 1.0]\n"
    )
    use = {name: f"{tmp_path}/odd.py:{name}" for name in ("raises", "odd")}
    settings = {name: RewardSettings(use=one, timeout_s=20.0, worker="one") for name, one in use.items()}
    with caplog.at_level(logging.WARNING), RewardPool(settings, max_failed_fraction=1.0) as pool:
        for _ in range(3):
            scored = pool.score(STEP)
    said = [record.getMessage() for record in caplog.records if "failed on" in record.getMessage()]
    assert [text.partition(" items")[0] for text in said] == [
        "reward raises failed on 8",
        "reward raises failed on 16",
        "reward raises failed on 24",
    ]
    assert ["Traceback" in text for text in said] == [True, False, False]
    assert scored.reasons["odd"] == [
        "the value nan (float) is not a finite number",
        "the value '0.5' (str) is not a finite number",
        "the value [1.0] (list) is not a finite number",
        "",
        "",
        "the value (1+2j) (complex) is not a finite number",
        "",
        "",
    ]
    assert (scored.table.status[[3, 4], 1] == RewardStatus.OK).all()


def test_files_of_two_folders_that_import_a_neighbor_of_one_name_are_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "neighbor_of_both.py").write_text(f"NAME = {folder!r}\n")
        (tmp_path / folder / "mine.py").write_text("from neighbor_of_both import NAME\n")
    assert resolve(f"{tmp_path}/one/mine.py:NAME") == "one"
    with pytest.raises(PluginError, match=r"one/neighbor_of_both\.py has that name"):
        resolve(f"{tmp_path}/two/mine.py:NAME")
    sys.modules.pop("neighbor_of_both")
