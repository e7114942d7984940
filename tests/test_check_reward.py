from collections.abc import Callable

import pytest

from unigrpo.rewards.format import Format
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.testing.conformance import ConformanceError, check_reward

GOOD = ["<think>x</think> 5", "5", "<think>", ""]


def check(reward: Callable[..., object]) -> list[float | None]:
    return check_reward(reward, prompts=["?"] * 4, completions=GOOD, answer=["5"] * 4)


@pytest.mark.parametrize("style", ["think", "think_answer", "reasoning_answer", "tag_count"])
def test_format_keeps_the_contract(style: str) -> None:
    check(Format(style))  # type: ignore[arg-type]


def test_values_come_back() -> None:
    assert check(Format()) == [1.0, 0.0, 0.0, 0.0]


def test_each_broken_rule_is_named() -> None:
    calls: list[int] = []

    def counts(completions: list[str], **columns: object) -> list[float]:
        calls.append(1)
        return [len(calls) / 100] * len(completions)

    broken: list[tuple[Callable[..., object], str]] = [
        (lambda completions, **columns: [2.0 for _ in completions], "outside its range"),
        (lambda completions, **columns: [float("nan") for _ in completions], "give a finite number"),
        (lambda completions, **columns: ["x" for _ in completions], "give a finite number"),
        (counts, "a second call changes a value"),
        (lambda completions, **columns: [i / 10 for i in range(len(completions))], "a shuffled batch changes"),
        (lambda completions, **columns: [1 / max(len(completions), 1)] * len(completions), "batches of one changes"),
    ]
    for reward, message in broken:
        with pytest.raises(ConformanceError, match=message):
            check(reward)


def test_a_wrong_length_is_a_broken_contract() -> None:
    with pytest.raises(RewardContractError, match="a list of 1 for 4"):
        check(lambda completions: [1.0])


def test_one_example_is_too_few() -> None:
    with pytest.raises(ConformanceError, match="at least two"):
        check_reward(Format(), prompts=["?"], completions=["5"])
