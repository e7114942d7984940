"""``Failed`` in place of a value: one item is an ERROR, and the reward is called once."""

from pathlib import Path

import pytest

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.base import Failed
from unigrpo.rewards.process.worker import judged
from unigrpo.rewards.runtime.isolation import IsolatedScoring, Outcome, Reply, outcomes_of
from unigrpo.rewards.runtime.process import RewardProcess
from unigrpo.settings.rewards import RewardSettings

REWARD = """
from unigrpo.rewards.base import Failed

calls = []

def judge(completions, log_metric, **columns):
    calls.append(1)
    log_metric("calls", len(calls))
    return [Failed("the server said 500") if text == "bomb" else 0.5 for text in completions]
"""


def test_failed_is_an_error_with_its_reason() -> None:
    values, status = judged([0.5, Failed("no answer"), None])
    assert values == [0.5, None, None]
    assert status == [RewardStatus.OK, RewardStatus.ERROR, RewardStatus.NOT_APPLICABLE]


@pytest.mark.parametrize("num_bombs", [1, 3])
def test_a_failed_item_leaves_the_others_alone_and_is_not_asked_again(tmp_path: Path, num_bombs: int) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    settings = RewardSettings(use=f"{tmp_path / 'reward.py'}:judge")
    process = RewardProcess(settings=settings)
    process.add("it", settings)
    texts = ["a", *["bomb"] * num_bombs, "b"]
    replies: list[Reply] = []
    failures: list[Outcome] = []

    def call(items: object) -> Reply:
        assert list(items) == list(range(len(texts)))  # type: ignore[call-overload]
        message = {"reward": "it", "columns": {"prompts": ["?"] * len(texts), "completions": texts}, "step": 0}
        replies.append(outcomes_of(process.exchange(message, timeout_s=60.0)))
        return replies[-1]

    process.open()
    try:
        process.wait_until_loaded()
        scoring = IsolatedScoring(
            call=call, name="it", minimum=0.0, on_failure=lambda _, outcome: failures.append(outcome)
        )
        outcomes = scoring.score([(item,) for item in range(len(texts))])
    finally:
        process.close()
    assert [reply.metrics["calls"] for reply in replies] == [1.0]
    assert (outcomes[0].value, outcomes[len(texts) - 1].value) == (0.5, 0.5)
    assert [outcome.status for outcome in failures] == [RewardStatus.ERROR] * num_bombs
    assert {outcome.reason for outcome in failures} == {"the server said 500"}
    assert all(outcome.value is None for outcome in failures)
