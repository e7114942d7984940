import math
import xml.etree.ElementTree as ElementTree

import pytest

from unigrpo.report.data import Change, Estimate
from unigrpo.report.figures import Point, Series, change_bar, line_chart, share_bar, smooth, ticks


def test_smoothing_keeps_a_constant_and_leaves_gaps() -> None:
    assert smooth([2.0, None, 2.0, 2.0], 5) == [2.0, None, 2.0, 2.0]


def test_smoothing_equals_the_weighted_mean_written_out() -> None:
    values, span = [1.0, 4.0, 2.0, 8.0], 3
    decay = 1 - 2 / (span + 1)
    for place, smoothed in enumerate(smooth(values, span)):
        weights = [decay ** (place - earlier) for earlier in range(place + 1)]
        wanted = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert smoothed == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 400, [0, 100, 200, 300, 400]), (-0.02, 0.02, [-0.02, -0.01, 0, 0.01, 0.02])],
)
def test_ticks_are_round_numbers_inside_the_axis(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


def _series(values: list[float | None], **keywords: object) -> Series:
    return Series(name="a & b", color="red", steps=list(range(len(values))), values=values, **keywords)  # type: ignore[arg-type]


def test_chart_is_well_formed_and_finite_for_hard_cases() -> None:
    cases = [
        [_series([1.0])],
        [_series([0.0, 0.0])],
        [_series([None, 1.0, None, 3.0])],
        [_series([1e-9, 2e-9]), _series([5.0] * 1000)],
        [_series([1.0, 2.0, 3.0], spread=[0.1, None, 0.2])],
    ]
    for series in cases:
        chart = line_chart("x < y", series)
        ElementTree.fromstring(chart)
        assert "nan" not in chart
        assert "inf" not in chart


def test_chart_without_values_is_nothing() -> None:
    assert line_chart("empty", [_series([None, None])]) == ""
    assert line_chart("empty", []) == ""


def test_long_run_is_thinned_to_few_points() -> None:
    chart = line_chart("long", [_series([math.sin(step / 50) for step in range(20_000)])])
    assert len(chart) < 40_000


def test_held_out_dot_stands_at_its_step_and_value() -> None:
    score = Estimate(value=0.5, error=0.1)
    chart = ElementTree.fromstring(
        line_chart("x", [_series([0.0] * 11)], bounds=(0, 1), points=[Point(step=5, score=score, color="red")])
    )
    dot = next(circle for circle in chart.iter("circle") if circle.get("stroke"))
    assert float(dot.get("cx", "0")) == pytest.approx((46 + 380 - 12) / 2)
    assert float(dot.get("cy", "0")) == pytest.approx((10 + 210 - 26) / 2)


def test_change_bar_draws_what_is_known() -> None:
    whole = Change(
        task="reason",
        metric="reward",
        num_prompts=9,
        before=Estimate(value=0.0, error=0.1),
        after=Estimate(value=1.0, error=None),
    )
    circles = list(ElementTree.fromstring(change_bar(whole, "red")).iter("circle"))
    assert [circle.get("cx") for circle in circles] == ["8.0", "292.0"]
    half = Change(task="reason", metric="reward", num_prompts=None, before=None, after=Estimate(value=0.5, error=None))
    assert len(list(ElementTree.fromstring(change_bar(half, "red")).iter("circle"))) == 1


def test_shares_fill_the_bar() -> None:
    root = ElementTree.fromstring(f"<div>{share_bar([('rollout', 3.0, 'red'), ('update', 1.0, 'blue')])}</div>")
    assert [rect.get("width") for rect in root.iter("rect")] == ["75.00", "25.00"]
    assert share_bar([]) == ""
