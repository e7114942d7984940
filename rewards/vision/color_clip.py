"""Colours by CLIP, GenEval's way: an object, cut out on grey, against sentences with each colour's name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from unigrpo.rewards.vision.detection import Box, Detection
from unigrpo.rewards.vision.geneval import COLORS
from unigrpo.rewards.vision.open_clip_towers import open_clip_body

TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
"""GenEval's sentences; a colour's vector is the mean of their unit vectors."""
GRAY = "#999999"


class ClipColors:
    """The colour whose sentences are closest to the crop.

    Pixels outside of the mask become grey, if the detector gives one; then the box is cut out. GenEval has the ViT-L-14
    of OpenAI, with its QuickGELU.
    """

    def __init__(self, model: str = "ViT-L-14", pretrained: str | None = "openai", *, device: str = "cpu") -> None:
        """Load the model, see :func:`unigrpo.rewards.vision.open_clip_towers.open_clip_body`.

        Args:
            model: ``local-dir:FOLDER``, ``hf-hub:OWNER/NAME`` or one of open_clip's names.
            pretrained: with one of those names, its tag or a file of weights; else give null.
            device: cpu, cuda or cuda:N.

        Raises:
            ValueError: for a model or tag that does not exist.
            FileNotFoundError: if the weights are neither here nor to be had.
        """
        self._body = open_clip_body(model, pretrained, device)

    def __call__(self, found: Sequence[tuple[Image.Image, Detection]]) -> list[str]:
        """Return one colour name for each object in its picture."""
        classifiers = {label: self._classifier(label) for label in dict.fromkeys(one.label for _, one in found)}
        vectors = self._body.encode_pictures([crop_of(picture, one) for picture, one in found])
        return [
            COLORS[int(np.argmax(classifiers[one.label] @ vector))]
            for (_, one), vector in zip(found, vectors, strict=True)
        ]

    def _classifier(self, label: str) -> np.ndarray:
        """Return [colours, D] unit vectors."""
        texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
        vectors = self._body.encode_texts(texts).reshape(len(COLORS), len(TEMPLATES), -1)
        means = vectors.mean(axis=1)
        return np.asarray(means / np.linalg.norm(means, axis=-1, keepdims=True))


def crop_of(picture: Image.Image, found: Detection) -> Image.Image:
    """Return what a detection covers: its box, at least a pixel wide and high, on grey outside of its mask.

    Raises:
        ValueError: if the mask is not of the picture's size.
    """
    if found.mask is not None:
        if found.mask.shape != picture.size[::-1]:
            raise ValueError(
                f"a mask of {found.mask.shape} on a picture of {picture.height} x {picture.width}; the detector has "
                "to return masks of the picture's own size"
            )
        ground = Image.new("RGB", picture.size, GRAY)
        picture = Image.composite(picture, ground, Image.fromarray(found.mask.astype(np.uint8) * 255))
    return picture.crop(_whole_pixels(found.box, picture.size))


def _whole_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (min(max(round(box[axis]), 0), size[axis] - 1) for axis in (0, 1))
    right, bottom = (min(round(box[axis + 2]), size[axis]) for axis in (0, 1))
    return left, top, max(right, left + 1), max(bottom, top + 1)
