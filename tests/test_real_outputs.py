"""Correctness on real outputs of LLaDA-8B-Instruct, beside the verdicts that were published for them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from unigrpo.rewards.correctness import Correctness

UNMARKED = "ours: the answer stands unmarked behind the reasoning; the published verdict reads marked ones only"
UNCLOSED = "published: the number is right; ours asks that a box is closed, as an open one has no certain end"
COMMA = "ours: the published verdict stops reading at the thousands separator"
EXACT = "ours: the same value; the published verdict compares spellings"

DISAGREEMENTS = {
    ("gsm8k", 0, 34): COMMA,
    ("gsm8k", 0, 127): COMMA,
    ("gsm8k", 0, 129): COMMA,
    ("gsm8k", 1, 53): "ours: 310 in the last box; the published verdict reads the empty one before it",
    ("gsm8k", 1, 71): UNCLOSED,
    ("gsm8k", 1, 132): UNMARKED,
    ("gsm8k", 2, 24): UNMARKED,
    ("gsm8k", 2, 45): UNCLOSED,
    ("gsm8k", 2, 103): UNCLOSED,
    ("gsm8k", 2, 156): "published: 2:00 pm answers at what time; ours does not call a time of day the number 2",
    ("gsm8k", 2, 186): COMMA,
    ("gsm8k", 2, 194): UNMARKED,
    ("gsm8k", 3, 58): "ours: 240000 in the last box; the published verdict reads 240 of 240,000 in the one before it",
    ("gsm8k", 3, 81): UNMARKED,
    ("gsm8k", 3, 127): UNMARKED,
    ("gsm8k", 3, 145): UNMARKED,
    ("gsm8k", 3, 168): UNCLOSED,
    ("math500", 0, 11): EXACT + " (15.975 and 639/40)",
    ("math500", 0, 24): EXACT + " (3/24 and 1/8)",
    ("math500", 0, 37): "ours: the question asks for all the values; their order is free (3, 7, 5 and 3, 5, 7)",
    ("math500", 1, 53): "ours: 4 in a box that lost its backslash",
    ("math500", 2, 33): "ours: 15 in place of 15 cm^2; the question states the unit",
    ("math500", 2, 52): EXACT + " (the subscript with braces and without)",
    ("math500", 2, 67): EXACT + " (36.00 and $36)",
    ("math500", 3, 29): EXACT + " (a root over 3 with a slash and as a fraction)",
    ("math500", 3, 44): EXACT + " (east, as text and plain)",
    ("math500", 3, 47): EXACT + " (the vector with its name in front)",
    ("math500", 3, 55): EXACT + " (7i - 2 and -2 + 7i)",
}
"""Family, file and item: who is right, and why."""


@dataclass(frozen=True)
class Item:
    key: tuple[str, int, int]
    question: str
    completion: str
    gold: object
    is_right: bool
    """The published verdict."""


@pytest.fixture(scope="module")
def items(test_data: Path) -> dict[str, list[Item]]:
    folder = test_data / "llada_generations"
    verdicts = json.loads((folder / "verdicts.json").read_text())["items"]
    found: dict[str, list[Item]] = {"gsm8k": [], "math500": []}
    for name in sorted(verdicts):
        family, number = name.split("_")[0], int(name.split("_")[-2])
        if family in found:
            rows = json.loads((folder / name).read_text())["generations"]
            found[family] += [
                Item(
                    (family, number, index),
                    row["question"],
                    row["generations"],
                    row["ground_truth"],
                    item["is_correct"],
                )
                for index, (row, item) in enumerate(zip(rows, verdicts[name], strict=True))
            ]
    return found


@pytest.fixture(scope="module")
def values(items: dict[str, list[Item]]) -> Iterator[dict[str, list[float | None]]]:
    reward = Correctness(deadline_s=12.0)
    yield {family: scored(reward, rows) for family, rows in items.items()}
    reward.close()


def scored(reward: Correctness, rows: list[Item]) -> list[float | None]:
    return reward(
        prompts=[row.question for row in rows],
        completions=[row.completion for row in rows],
        answer=[row.gold for row in rows],
    )


def percent(verdicts: list[bool]) -> float:
    return 100 * sum(verdicts) / len(verdicts)


@pytest.mark.parametrize(("family", "least"), [("gsm8k", 97.0), ("math500", 95.0)])
def test_verdicts_agree_but_for_those_that_are_explained(
    items: dict[str, list[Item]], values: dict[str, list[float | None]], family: str, least: float
) -> None:
    pairs = list(zip(items[family], values[family], strict=True))
    assert percent([bool(value) == item.is_right for item, value in pairs]) >= least
    assert {item.key for item, value in pairs if bool(value) != item.is_right} == {
        key for key in DISAGREEMENTS if key[0] == family
    }


def test_each_explanation_names_the_side_that_is_right(
    items: dict[str, list[Item]], values: dict[str, list[float | None]]
) -> None:
    for family, rows in items.items():
        for item, value in zip(rows, values[family], strict=True):
            if item.key in DISAGREEMENTS:  # In every one of them the answer itself is right.
                assert DISAGREEMENTS[item.key].startswith("ours" if value else "published")


def test_the_published_totals_are_read_right(items: dict[str, list[Item]]) -> None:
    totals = {family: [item.is_right for item in rows] for family, rows in items.items()}
    assert {family: (sum(rights), len(rights)) for family, rights in totals.items()} == {
        "gsm8k": (630, 819),
        "math500": (116, 334),
    }


def test_the_total_of_gsm8k_is_within_a_point(
    items: dict[str, list[Item]], values: dict[str, list[float | None]]
) -> None:
    assert percent([bool(value) for value in values["gsm8k"]]) == pytest.approx(76.92, abs=1.0)


def test_the_total_of_math_exceeds_the_published_one_by_the_explained_items(
    items: dict[str, list[Item]], values: dict[str, list[float | None]]
) -> None:
    """Mathematics calls eleven more right than spellings do: 3.3 points. The next test counts spellings."""
    num_ours = sum(key[0] == "math500" for key in DISAGREEMENTS)
    assert sum(bool(value) for value in values["math500"]) == 116 + num_ours


@pytest.mark.parametrize(("family", "published"), [("gsm8k", 76.92), ("math500", 34.73)])
def test_totals_by_spelling_are_within_a_point_of_the_published_ones(
    items: dict[str, list[Item]], family: str, published: float
) -> None:
    given = scored(Correctness(equality="spelling"), items[family])
    assert percent([bool(value) for value in given]) == pytest.approx(published, abs=1.0)
