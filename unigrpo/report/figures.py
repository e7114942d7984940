"""The report's figures as inline SVG: their colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from unigrpo.report.data import Change, Estimate

Value = float | None
WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
MAX_POINTS = 400
"""Points of a curve; longer runs are thinned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve of a chart."""

    name: str
    color: str
    """A CSS colour."""
    steps: Sequence[int]
    values: Sequence[Value]
    """None is a gap."""
    spread: Sequence[Value] = ()
    """Standard deviation around each value, drawn as a band; empty is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A held-out score in a chart of curves."""

    step: int
    score: Estimate
    color: str


def smooth(values: Sequence[Value], span: int) -> list[Value]:
    """Return the exponential moving average over about `span` values, unbiased at its start; gaps stay gaps."""
    decay = 1.0 - 2.0 / (span + 1.0)
    total, weight = 0.0, 0.0
    result: list[Value] = []
    for value in values:
        if value is None:
            result.append(None)
            continue
        total, weight = decay * total + value, decay * weight + 1.0
        result.append(total / weight)
    return result


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that cover low..high, about `count` of them."""
    raw = (high - low) / max(count, 1)
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    unit = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / unit - 1e-9)
    return [round(number * unit, 12) for number in range(first, math.floor(high / unit + 1e-9) + 1)]


def line_chart(
    title: str, series: Sequence[Series], *, bounds: tuple[float, float] | None = None, points: Iterable[Point] = ()
) -> str:
    """Return a chart of curves over learner steps: raw faint, smoothed bold, spread as a band, scores as dots.

    Args:
        title: above the chart.
        series: curves; those without a value are left out.
        bounds: lowest and highest value of the axis; None takes them from the data.
        points: held-out scores with their 95 % intervals.
    """
    drawn = [_thin(one) for one in series if any(value is not None for value in one.values)]
    dots = list(points)
    if not drawn and not dots:
        return ""
    frame = _Frame.around(drawn, dots, bounds)
    parts = [frame.grid()]
    parts += [_curve(frame, one) for one in drawn]
    parts += [_dot(frame, point) for point in dots]
    legend = "".join(
        f'<span class="key"><i style="background:{escape(one.color)}"></i>{escape(one.name)}</span>' for one in drawn
    )
    keys = f'<span class="keys">{legend}</span>' if len(drawn) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}'
        f"{keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def change_bar(change: Change, color: str) -> str:
    """Return before (hollow) and after (filled) on an axis from 0 to 1, with their 95 % intervals."""
    width, middle, left = 300, 20, 8
    scale = width - 2 * left

    def x(value: float) -> float:
        return left + scale * min(max(value, 0.0), 1.0)

    parts = [f'<line class="axis" x1="{left}" x2="{width - left}" y1="{middle}" y2="{middle}"/>']
    for mark in (0.0, 0.5, 1.0):
        parts.append(f'<line class="axis" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{middle - 4}" y2="{middle + 4}"/>')
    if change.before and change.after:
        parts.append(
            f'<line x1="{x(change.before.value):.1f}" x2="{x(change.after.value):.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{escape(color)}" stroke-width="3"/>'
        )
    for score, is_after in ((change.before, False), (change.after, True)):
        if score is None:
            continue
        if score.interval:
            low, high = score.interval
            parts.append(
                f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}" stroke="{escape(color)}" '
                'stroke-width="9" stroke-opacity=".25" stroke-linecap="round"/>'
            )
        fill = escape(color) if is_after else "var(--card)"
        name = "after" if is_after else "before"
        parts.append(
            f'<circle cx="{x(score.value):.1f}" cy="{middle}" r="5" fill="{fill}" stroke="{escape(color)}" '
            f'stroke-width="2"><title>{name} {score.value:.3f}</title></circle>'
        )
    return (
        f'<svg class="change" viewBox="0 0 {width} 40" role="img" aria-label="before and after">{"".join(parts)}</svg>'
    )


def share_bar(parts: Sequence[tuple[str, float, str]]) -> str:
    """Return one stacked bar of shares, with a key below.

    A part is (name, seconds, CSS color), the largest first.
    """
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return ""
    left, bars, keys = 0.0, [], []
    for name, amount, color in parts:
        width = 100.0 * amount / total
        bars.append(
            f'<rect x="{left:.2f}" y="0" width="{width:.2f}" height="6" fill="{escape(color)}">'
            f"<title>{escape(name)} {width:.0f} %</title></rect>"
        )
        keys.append(f'<span class="key"><i style="background:{escape(color)}"></i>{escape(name)} {width:.0f} %</span>')
        left += width
    return (
        f'<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="shares of time">'
        f'{"".join(bars)}</svg><p class="keys">{"".join(keys)}</p>'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    first: int
    last: int
    low: float
    high: float

    @classmethod
    def around(cls, series: Sequence[Series], points: Sequence[Point], bounds: tuple[float, float] | None) -> _Frame:
        steps = [step for one in series for step in one.steps] + [point.step for point in points]
        if bounds is None:
            values = [value for one in series for value in one.values if value is not None]
            for one in series:
                pairs = zip(one.values, one.spread, strict=False)
                known = [(value, width) for value, width in pairs if value is not None and width is not None]
                values += [edge for value, width in known for edge in (value - width, value + width)]
            values += [point.score.value for point in points]
            low, high = min(values), max(values)
            margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
            bounds = (0.0 if 0.0 <= low <= high - low else low - margin, high + margin)
        return cls(first=min(steps), last=max(max(steps), min(steps) + 1), low=bounds[0], high=bounds[1])

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (inside - self.low) / (self.high - self.low))

    def grid(self) -> str:
        parts = []
        for value in ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_short(value)}</text>'
            )
        for step in ticks(self.first, self.last, 5):
            if step == int(step):
                text = (
                    f'<text class="tick" x="{self.x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:g}</text>'
                )
                parts.append(text)
        return "".join(parts)


def _curve(frame: _Frame, series: Series) -> str:
    span = max(1, len(series.values) // 20)
    smoothed = smooth(series.values, span)
    color = escape(series.color)
    parts = []
    if series.spread:
        spread = smooth(series.spread, span)
        for segment in _segments(series.steps, smoothed, spread):
            upper = [f"{frame.x(step):.1f},{frame.y(value + width):.1f}" for step, value, width in segment]
            lower = [f"{frame.x(step):.1f},{frame.y(value - width):.1f}" for step, value, width in reversed(segment)]
            parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{color}" fill-opacity=".13"/>')
    if span > 1:
        parts.append(_path(frame, series.steps, series.values, f'stroke="{color}" stroke-opacity=".3"'))
    parts.append(_path(frame, series.steps, smoothed, f'stroke="{color}" stroke-width="2"'))
    every = max(1, len(series.steps) // 60)
    for step, value in list(zip(series.steps, series.values, strict=True))[::every]:
        if value is not None:
            parts.append(
                f'<circle class="hover" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="4" fill="{color}">'
                f"<title>{escape(series.name)}, step {step}: {value:.4g}</title></circle>"
            )
    return "".join(parts)


def _path(frame: _Frame, steps: Sequence[int], values: Sequence[Value], style: str) -> str:
    commands, is_pen_down = [], False
    for step, value in zip(steps, values, strict=True):
        if value is None:
            is_pen_down = False
            continue
        commands.append(f"{'L' if is_pen_down else 'M'}{frame.x(step):.1f},{frame.y(value):.1f}")
        is_pen_down = True
    return f'<path d="{"".join(commands)}" fill="none" stroke-linejoin="round" stroke-linecap="round" {style}/>'


def _dot(frame: _Frame, point: Point) -> str:
    x, color = frame.x(point.step), escape(point.color)
    low, high = point.score.interval or (point.score.value, point.score.value)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}" stroke="{color}" '
        f'stroke-width="2"/><circle cx="{x:.1f}" cy="{frame.y(point.score.value):.1f}" r="4" fill="var(--card)" '
        f'stroke="{color}" stroke-width="2">'
        f"<title>held out, step {point.step}: {point.score.value:.3f}</title></circle>"
    )


def _segments(
    steps: Sequence[int], values: Sequence[Value], spread: Sequence[Value]
) -> list[list[tuple[int, float, float]]]:
    segments: list[list[tuple[int, float, float]]] = [[]]
    for step, value, width in zip(steps, values, spread, strict=True):
        if value is None or width is None:
            segments.append([])
        else:
            segments[-1].append((step, value, width))
    return [segment for segment in segments if len(segment) > 1]


def _thin(series: Series) -> Series:
    """Average neighbours until at most `MAX_POINTS` are left, so that long runs make small files."""
    size = -(-len(series.steps) // MAX_POINTS)
    if size == 1:
        return series
    starts = range(0, len(series.steps), size)

    def mean(values: Sequence[Value], start: int) -> Value:
        known = [value for value in values[start : start + size] if value is not None]
        return sum(known) / len(known) if known else None

    return Series(
        name=series.name,
        color=series.color,
        steps=[series.steps[min(start + size, len(series.steps)) - 1] for start in starts],
        values=[mean(series.values, start) for start in starts],
        spread=[mean(series.spread, start) for start in starts] if series.spread else (),
    )


def _short(value: float) -> str:
    magnitude = abs(value)
    if magnitude and (magnitude < 1e-3 or magnitude >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"
