"""Scene: does a generated picture show the asked coloured shapes in the asked relation? Read from its pixels alone.

The reader knows the rules of the picture, not how it was made: 4 x 4 cells on a light ground, in each at most one
filled circle, square or triangle of one of five colours. It goes by hue and by outline, so blur and a shifted tint do
not matter.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image

from unigrpo.pictures import as_rgb
from unigrpo.rewards.base import Column
from unigrpo.rewards.vision.pictures import picture_values

Found = tuple[str, str, int, int]
"""(colour, shape, row, column)."""

NUM_CELLS = 4
CELL = 16
HUES = (("red", 24), ("yellow", 80), ("green", 175), ("blue", 253), ("purple", 330), ("red", 361))
"""Colour names, each up to a hue in degrees."""
MIN_CHROMA = 50
"""Largest minus smallest of R, G, B (0..255) below which a cell is empty."""
CORE = 40
"""Pixels that vote on colour: the smallest shape, the triangle, covers 72 of the 256 of a cell."""
MIN_AGREEMENT = 0.75
"""Share of the core that must have one colour name."""
MIN_OVERLAP = 0.65
"""Smallest overlap (intersection over union) with an outline; the circle's with the square's is 0.79."""
MAX_POINTS = 6


@cache
def _outlines() -> dict[str, np.ndarray]:
    """Return [16, 16] bool, half covered or more, of each shape: 12 pixels wide and high, in the middle of the cell."""
    fine = 8
    y, x = (np.mgrid[0 : CELL * fine, 0 : CELL * fine] + 0.5) / fine - CELL / 2
    inside = {
        "circle": x**2 + y**2 <= 36,
        "square": np.maximum(abs(x), abs(y)) <= 6,
        "triangle": (abs(y) <= 6) & (abs(x) <= (y + 6) / 2),
    }
    return {name: mask.reshape(CELL, fine, CELL, fine).mean(axis=(1, 3)) >= 0.5 for name, mask in inside.items()}


def read_scene(image: Image.Image) -> list[Found]:
    """Return (colour, shape, row, column) of every object in a picture, in reading order.

    A cell whose colours disagree, or whose outline is none of the three, counts as empty.
    """
    side = NUM_CELLS * CELL
    rgb = as_rgb(image)
    if rgb.size != (side, side):
        rgb = rgb.resize((side, side), Image.Resampling.BOX)
    pixels = np.asarray(rgb).astype(np.float64)
    cells = pixels.reshape(NUM_CELLS, CELL, NUM_CELLS, CELL, 3).transpose(0, 2, 1, 3, 4)
    found = []
    for row in range(NUM_CELLS):
        for column in range(NUM_CELLS):
            read = _read_cell(cells[row, column])
            if read is not None:
                found.append((*read, row, column))
    return found


def _read_cell(cell: np.ndarray) -> tuple[str, str] | None:
    """Return (colour, shape) of a [16, 16, 3] cell, None where there is no object."""
    chroma = np.ptp(cell, axis=-1)
    core = np.argsort(chroma, axis=None)[-CORE:]
    strength = float(chroma.reshape(-1)[core].mean())
    if strength < MIN_CHROMA:
        return None
    names = [_color(pixel) for pixel in cell.reshape(-1, 3)[core]]
    color = max(sorted(set(names)), key=names.count)
    if names.count(color) < MIN_AGREEMENT * CORE:
        return None
    is_painted = chroma > strength / 2
    overlaps = {
        shape: np.count_nonzero(is_painted & outline) / np.count_nonzero(is_painted | outline)
        for shape, outline in _outlines().items()
    }
    shape = max(overlaps, key=lambda name: overlaps[name])
    return (color, shape) if overlaps[shape] >= MIN_OVERLAP else None


def _color(pixel: np.ndarray) -> str:
    degrees = 360 * colorsys.rgb_to_hsv(*(float(value) / 255 for value in pixel))[0]
    return next(name for name, limit in HUES if degrees < limit)


class Scene:
    """1 when the picture shows exactly what was asked, partial credit below.

    Of six points of partial credit, each asked object gives one for its colour and one for its shape (objects are
    paired with what is found so as to score most), their relation gives two, and every object too many takes one. Left
    and right compare columns, above and below compare rows. ``exact_weight`` gives a share of the value to pictures
    without any mistake only, as GenEval counts.

    Range: 0 to 1; 1 is exactly what was asked.
    Needs: generated pictures (task imagine); columns ``objects`` ([[colour, shape], [colour, shape]]) and ``relation``.
    Source: our own, for rendered scenes; the strict share is GenEval's rule (arXiv 2310.11513).
    Cost: milliseconds a picture; no weights.
    Hacked by: blots that only this reader takes for the asked shapes: it goes by hue and outline alone.
    Recipe:
        scene: {use: "unigrpo.rewards.scene:Scene", arguments: {exact_weight: 0.5}, tasks: [imagine]}
    """

    range = (0.0, 1.0)
    wanted_columns = ("objects", "relation")
    needed_columns = (("objects",),)
    is_deterministic = True

    def __init__(self, *, exact_weight: float = 0.0) -> None:
        """Set the share of the value that only a picture without any mistake gets.

        Raises:
            ValueError: outside of [0, 1].
        """
        if not 0 <= exact_weight <= 1:
            raise ValueError(f"exact_weight is {exact_weight}; give a share from 0 (partial credit only) to 1")
        self._exact_weight = exact_weight

    def __call__(
        self,
        *,
        completions: Column,
        objects: Column | None = None,
        relation: Column | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one value a completion; None for text, and where no objects or no relation was asked."""
        nothing = [None] * len(completions)
        scenes = enumerate(zip(objects or nothing, relation or nothing, strict=True))
        wanted = {row: (asked, how) for row, (asked, how) in scenes if asked is not None and how is not None}

        def score(pictures: dict[int, Image.Image]) -> Iterator[float]:
            for row, picture in pictures.items():
                credit = _partial_credit(read_scene(picture), *wanted[row])
                yield (1 - self._exact_weight) * credit + self._exact_weight * (credit == 1)

        asked = [row in wanted for row in range(len(completions))]
        return picture_values(completions, score, refused=0.0, asked=asked, log_metric=log_metric)


def _partial_credit(found: list[Found], asked: Sequence[Sequence[str]], relation: str | None) -> float:
    if len(asked) != 2:
        raise ValueError(f"{len(asked)} objects asked; a relation is between two")
    best = max((_points(pair, asked, relation) for pair in _pairs(found)), default=0)
    return max(0, best - max(0, len(found) - len(asked))) / MAX_POINTS


def _pairs(found: list[Found]) -> list[tuple[Found | None, Found | None]]:
    """Return every way to take a first and a second object; a lone one stands for either."""
    if len(found) == 1:
        return [(found[0], None), (None, found[0])]
    return list(permutations(found, 2))


def _points(pair: tuple[Found | None, Found | None], asked: Sequence[Sequence[str]], relation: str | None) -> int:
    points = 0
    for one, (color, shape) in zip(pair, asked, strict=True):
        if one is not None:
            points += (one[0] == color) + (one[1] == shape)
    first, second = pair
    if first is not None and second is not None and _holds(relation, first, second):
        points += 2
    return points


def _holds(relation: str | None, first: Found, second: Found) -> bool:
    rows, columns = second[2] - first[2], second[3] - first[3]
    ahead = {"left of": columns, "right of": -columns, "above": rows, "below": -rows}
    if relation not in ahead:
        raise ValueError(f"relation {relation!r} is not known; it is one of {', '.join(ahead)}")
    return ahead[relation] > 0
