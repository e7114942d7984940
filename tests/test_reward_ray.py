"""Rewards on the nodes of a Ray cluster: the same outcomes as here, also under an interpreter of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_reward_matrix import ODD_TEXTS, OK, OUTCOMES, rollouts, settings

from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import EnvSettings, RewardSettings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
FORMS, LOWEST = ("function", "Class"), (0.0, -1.0)


def test_every_misbehaviour_of_every_form_has_its_outcome_and_moves_no_other_item() -> None:
    """The two that end the worker stand together in a call of three items, since each death costs a start on Ray."""
    texts, deadly = list(ODD_TEXTS), ("exit", "kill")
    for kind in [kind for kind in OUTCOMES if kind not in deadly]:
        texts += [f"bomb {kind}", "z" * len(texts)]
    texts += [*(f"bomb {kind}" for kind in deadly), "z" * len(texts)]
    on_ray = {
        form: settings(form, placement="ray", num_cpus=0.1, num_workers=1, max_failed_fraction=1.0, batch_size=3)
        for form in FORMS
    }
    with RewardPool(on_ray) as pool:
        table = pool.score(rollouts(texts)).table
        again = pool.score(rollouts(["abc", "de"])).table
    wanted = [OUTCOMES.get(text.removeprefix("bomb "), OK) for text in texts]
    assert [row.tolist() for row in table.status] == [[status] * len(FORMS) for status in wanted]
    own = np.array([len(text) / 2**20 for text in texts])
    own[np.array(wanted) != OK] = np.nan
    expected = np.repeat(own[:, None], len(FORMS), axis=1)
    expected[texts.index("bomb hang")] = LOWEST
    np.testing.assert_allclose(table.values, expected, rtol=1e-6)
    assert again.values.tolist() == [[3 / 2**20] * len(FORMS), [2 / 2**20] * len(FORMS)]


def test_an_interpreter_of_its_own_on_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIGRPO_HOME", str(tmp_path / "home"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (tmp_path / "mine.py").write_text(
        "import importlib.util, os, sys\n"
        "def own(completions, log_metric, **columns):\n"
        f"    is_own = sys.prefix == {str(tmp_path / 'bare')!r} and not importlib.util.find_spec('numpy')\n"
        "    log_metric('is_own', is_own)\n"
        "    if 'die' in completions: os._exit(3)\n"
        "    return [len(completion) / 10 for completion in completions]\n"
    )
    on_ray = RewardSettings(
        use="mine.py:own",
        env=EnvSettings(python="bare/bin/python"),
        placement="ray",
        num_cpus=0.1,
        max_failed_fraction=1.0,
        batch_size=1,
    )
    with RewardPool({"own": on_ray}, folder=tmp_path) as pool:
        scored = pool.score(rollouts(["a", "bb", "die", "cccc"]))
        table = scored.table
        stats = scored.stats["own"]
    np.testing.assert_array_equal(table.values[:, 0], [0.1, 0.2, np.nan, 0.4])
    assert stats.metrics["is_own"] == 1.0
    assert stats.num_restarts >= 1
