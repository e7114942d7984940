"""What a picture reward asks of an object detector, and of a reader of colours; any class of these calls will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the picture, the far edges not included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """One object that a detector found."""

    label: str
    score: float
    """0 to 1; the order within a label is by it."""
    box: Box
    color: str | None = None
    """A colour name, from detectors that read it; else a :class:`ColorReader` is asked."""
    mask: np.ndarray | None = None
    """[H, W] bool over the whole picture, from detectors that segment."""


class Detector(Protocol):
    """Finds objects in pictures."""

    def __call__(
        self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> Sequence[Sequence[Detection]]:
        """Return what each picture shows, at any score.

        Args:
            pictures: 8-bit RGB.
            labels: of each picture, the names that the reward will look for. A detector of a fixed vocabulary may
                return others, too.
        """


class ColorReader(Protocol):
    """Names the colour of what was found."""

    def __call__(self, found: Sequence[tuple[Image.Image, Detection]]) -> Sequence[str]:
        """Return one of :data:`unigrpo.rewards.vision.geneval.COLORS` for each object in its picture."""
