"""What a scoring shows: the rows of its table, and a page with the worst, best and failed items of each reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unigrpo.data.jsonl import as_text
from unigrpo.pictures import MAX_PIXELS, as_url
from unigrpo.report.page import write_page
from unigrpo.reward_table import MAX_MAGNITUDE
from unigrpo.sanitized import sanitized
from unigrpo.scoring.items import PictureRefusedError, ScoreItem, read_picture
from unigrpo.scoring.score import ItemScores, RewardSummary, Scores

TEMPLATE = "score.html"
HEADS = ("reward", "scored", "n/a", "mean", "std", "p5", "p95", "failed", "p50 ms", "p95 ms", "items/s")
NUM_VALUE_HEADS = 8
"""How many of ``HEADS`` are about values; the rest are about time."""
LEGEND = (
    "p5 and p95 are percentiles of the values, p50 ms and p95 ms of the milliseconds that a batch takes. An item that "
    "timed out has the reward's lowest value; other failures have none."
)
NUM_SHOWN = 6
MAX_TEXT = 2_000
THUMBNAIL_SIDE = 256
NUM_BARS = 20


def table_row(reward: RewardSummary) -> tuple[str, ...]:
    """Return the cells of one reward, one for each of ``HEADS``."""
    failures = ", ".join(f"{count} {kind}" for kind, count in reward.failures.items())
    values = (reward.mean, reward.std, reward.p5, reward.p95)
    seconds = (reward.latency_p50_s, reward.latency_p95_s)
    return (
        reward.name,
        f"{reward.num_scored:,}",
        f"{reward.num_not_applicable:,}",
        *("" if value is None else f"{value:.3g}" for value in values),
        failures or "0",
        *("" if value is None else f"{value * 1000:,.0f}" for value in seconds),
        "" if reward.items_per_s is None else f"{reward.items_per_s:,.0f}",
    )


def write_score_page(out: Path, scores: Scores, title: str) -> Path:
    """Write one self-contained HTML file about a scoring, pictures as thumbnails inside; return the file."""
    totals = [item.reward for item in scores.items if item.reward is not None]
    facts = [("items", f"{len(scores.items):,}"), ("time", f"{scores.seconds:.1f} s")]
    sums = [one.optimized for one in scores.items if one.optimized is not None]
    if totals and len(scores.rewards) > 1:
        facts.append(("weighted mean in [0, 1]", f"{np.mean(totals):.4f}"))
        facts.append(("sum of value times weight, as optimised", f"{np.mean(sums):.4g}"))
    if scores.order_note:
        facts.append(("note", scores.order_note))
    return write_page(
        out,
        TEMPLATE,
        title=title,
        facts=facts,
        heads=HEADS,
        rows=[table_row(reward) for reward in scores.rewards],
        legend=LEGEND,
        rewards=[_section(scores, reward) for reward in scores.rewards],
    )


def _section(scores: Scores, reward: RewardSummary) -> dict[str, Any]:
    name = reward.name
    worst, best = scores.extremes(name, NUM_SHOWN)
    failed = [item for item in scores.items if item.status[name] in ("error", "invalid", "timeout", "unreadable")]
    values = [value for item in scores.items if (value := item.values[name]) is not None]
    return {
        "name": name,
        "use": reward.use,
        "histogram": histogram(values),
        "best": list(_cards(best, name)),
        "worst": list(_cards(worst, name)),
        "failed": list(_cards(failed[:NUM_SHOWN], name)),
    }


def _cards(items: Sequence[ItemScores], name: str) -> Iterator[dict[str, Any]]:
    for scored in items:
        item, value = scored.item, scored.values[name]
        others = [f"{other} {scored.values[other]:.3g}" for other in scored.values if scored.values[other] is not None]
        yield {
            "value": scored.status[name] if scored.status[name] != "ok" else f"{value:.4g}",
            "is_passed": scored.passed[name],
            "reason": "" if scored.refusal else scored.reasons.get(name, ""),
            "source": item.source,
            "others": " · ".join(others) if len(others) > 1 else "",
            "prompt": item.prompt_text[:MAX_TEXT],
            "prompt_pictures": [url for path in item.images if (url := thumbnail(path, item.max_pixels))],
            "picture": None if item.picture is None else thumbnail(item.picture, item.max_pixels),
            "text": scored.refusal or (item.text or "")[:MAX_TEXT],
            "answer": "" if item.answer is None else as_text(item.answer)[:MAX_TEXT],
        }


def thumbnail(path: Path, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return a small PNG of a picture as a data URL; None where it cannot be read."""
    try:
        picture = read_picture(path, max_pixels)
    except PictureRefusedError:
        return None
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return as_url(picture)


def histogram(values: Sequence[float]) -> str:
    """Return an inline SVG of how often each value occurs; empty where all are alike.

    Values that are too large to count are left out.
    """
    values = [value for value in values if abs(value) <= MAX_MAGNITUDE]
    if len(set(values)) < 2:
        return ""
    counts, edges = np.histogram(np.array(values, dtype=np.float64), bins=NUM_BARS)
    width, height, base = 18, 120, 130
    bars = "".join(
        f'<rect class="bar" x="{index * width + 1}" y="{base - (size := height * count / counts.max()):.1f}" '
        f'width="{width - 2}" height="{size:.1f}"><title>{edges[index]:.3g} to {edges[index + 1]:.3g}: {count}</title>'
        "</rect>"
        for index, count in enumerate(counts.tolist())
    )
    end = NUM_BARS * width
    return (
        f'<svg viewBox="0 0 {end} {base + 16}" role="img">{bars}'
        f'<text class="tick" x="0" y="{base + 13}">{edges[0]:.3g}</text>'
        f'<text class="tick" x="{end}" y="{base + 13}" text-anchor="end">{edges[-1]:.3g}</text></svg>'
    )


def snippet(item: ScoreItem, length: int = 60) -> str:
    """Return the start of a completion on one line, or its picture's name."""
    text = item.picture.name if item.picture is not None else " ".join((item.text or "").split())
    text = sanitized(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"
