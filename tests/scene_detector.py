"""A detector for the rendered scenes: what :func:`unigrpo.rewards.scene.read_scene` reads from pixels."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from unigrpo.rewards.scene import CELL, NUM_CELLS, read_scene
from unigrpo.rewards.vision.detection import Detection

MARGIN = 2
"""Pixels of a cell of 16 around its shape."""


class SceneDetector:
    """Circles, squares and triangles with their colours, each at score 1, in reading order."""

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return every object of each picture; ``labels`` are not read."""
        return [_detections(picture) for picture in pictures]


def _detections(picture: Image.Image) -> list[Detection]:
    side = NUM_CELLS * CELL
    across, down = picture.width / side, picture.height / side
    found = []
    for color, shape, row, column in read_scene(picture):
        left, top = column * CELL + MARGIN, row * CELL + MARGIN
        right, bottom = (column + 1) * CELL - MARGIN, (row + 1) * CELL - MARGIN
        box = (left * across, top * down, right * across, bottom * down)
        found.append(Detection(label=shape, score=1.0, box=box, color=color))
    return found
