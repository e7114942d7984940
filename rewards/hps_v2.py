"""HPS v2: the human preference score of a picture for its prompt (Wu et al., arXiv 2306.09341).

A ViT-H/14 CLIP trained further on people's choices. Its authors make pictures ready in their own way: to real numbers
first, the longer side to 224, black at the edges, so that nothing is cropped. They multiply the vectors in half
precision, whose steps of 2e-4 are visible beside the differences within a group; here all is single precision or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.rewards.vision.clip_body import PromptAlignment, shared_body
from unigrpo.rewards.vision.open_clip_towers import OpenClipTowers
from unigrpo.rewards.vision.published_weights import open_published

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class HpsV2(PromptAlignment):
    """``scale`` times the cosine of picture and prompt under HPS v2.1 or v2, 0 where it is negative.

    Range: 0 to ``scale``; pictures of today's generators have 0.23 to 0.29 (v2) or 0.24 to 0.34 (v2.1).
    Needs: generated pictures with prompts; no column.
    Source: Wu et al., arXiv 2306.09341; weights xswu/HPSv2 (Apache-2.0).
    Cost: ViT-H/14 has 0.99 billion weights, 4 GB in single precision; one pass a picture.
    Hacked by: contrast and detail beyond what was asked, and pictures that grow alike. Hold one scorer out and log the
        diversity within groups.
    Recipe:
        hps_v2: {use: "unigrpo.rewards.hps_v2:HpsV2", arguments: {weights: hps_v2.1, device: cuda}, tasks: [imagine]}
    """

    name = "hps_v2"
    is_deterministic = True

    def __init__(
        self,
        weights: str = "hps_v2.1",
        *,
        model: str = "ViT-H-14",
        antialias: bool = True,
        scale: float = 1.0,
        device: str = "cpu",
    ) -> None:
        """Load the model.

        Args:
            weights: ``hps_v2.1``, ``hps_v2``, ``hf-hub:OWNER/NAME/FILE`` or a path.
            model: open_clip's name of the architecture.
            antialias: as the authors' package does with torchvision from 0.17 on; False is what it did at publication.
            scale: the largest value.
            device: cpu, cuda or cuda:N.

        Raises:
            ValueError: for a scale that is not above 0, or weights that are not what they should be.
            FileNotFoundError: if the weights are neither here nor to be had.
        """
        if not scale > 0:
            raise ValueError(f"scale {scale}; give the value of a cosine of 1, above 0")
        self.range = (0.0, scale)
        self._scale = scale
        path = str(open_published(weights))
        self._body = shared_body(
            ("hps_v2", model, path, antialias),
            device,
            lambda: _HpsTowers(model, path, device=device, antialias=antialias),
        )


class _HpsTowers(OpenClipTowers):
    """An open_clip model that sees the whole picture."""

    def __init__(self, name: str, weights: str, *, device: str, antialias: bool) -> None:
        super().__init__(name, weights, device=device)
        settings = self.model.visual.preprocess_cfg
        size = settings["size"]
        self._size = size if isinstance(size, int) else max(size)
        self._mean, self._std = settings["mean"], settings["std"]
        self._antialias = antialias

    def picture_input(self, picture: Image.Image) -> Tensor:
        """Return [3, S, S] float32: the longer side resized to S, the rest black, as the authors do."""
        return letterboxed(picture, self._size, self._mean, self._std, antialias=self._antialias)


def letterboxed(
    picture: Image.Image, size: int, mean: Sequence[float], std: Sequence[float], *, antialias: bool
) -> Tensor:
    """Return [3, size, size] float32 of an RGB picture: resized as real numbers, then black at the edges, then scaled.

    Args:
        picture: of any aspect.
        size: of the result.
        mean: of each colour, in 0..1.
        std: of each colour.
        antialias: whether pixels are averaged on the way down.
    """
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1)
    factor = size / max(pixels.shape[1:])
    height, width = (max(1, round(side * factor)) for side in pixels.shape[1:])
    if (height, width) != tuple(pixels.shape[1:]):
        pixels = functional.interpolate(
            pixels[None], size=(height, width), mode="bicubic", align_corners=False, antialias=antialias
        )[0]
    left, top = (size - width) // 2, (size - height) // 2
    padded = functional.pad(pixels, (left, size - width - left, top, size - height - top))
    return (padded - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
