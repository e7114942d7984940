"""JPEG size: how many kilobytes a picture takes. No weights, no prompt: the plainest image reward there is.

Black et al. (arXiv 2305.13301) call the two signs compressibility and incompressibility. Optimised alone it leads to
blank pictures, or to noise: it is there to see whether a run learns anything at all.
"""

from __future__ import annotations

import io
from typing import Any, Literal

from PIL import Image

from unigrpo.rewards.base import Column
from unigrpo.rewards.vision.pictures import picture_values

QUALITY = 95


class JpegSize:
    """Minus, or plus, the size of the picture as JPEG of quality 95, in kB of 1000 bytes, divided by ``scale``.

    A picture larger than ``scale`` counts as one of that size.

    Range: -1 to 0 for ``smaller``, 0 to 1 for ``larger``.
    Needs: generated pictures (task imagine).
    Source: Black et al., arXiv 2305.13301: compressibility and incompressibility.
    Cost: 10 ms a picture of 512 x 512; no weights.
    Hacked by: blank pictures for ``smaller``, noise for ``larger``. Optimised alone it only shows that a run learns.
    Recipe:
        jpeg_size: {use: "unigrpo.rewards.jpeg_size:JpegSize", arguments: {direction: smaller}, tasks: [imagine]}
    """

    is_deterministic = True

    def __init__(self, direction: Literal["smaller", "larger"] = "smaller", *, scale: float = 500.0) -> None:
        """Choose what is rewarded.

        Args:
            direction: smaller gives 0 to an empty file and -1 to one of ``scale`` kB; larger 0 and 1.
            scale: kB at which the reward ends; 500 is for pictures of 512 x 512, about the largest they get.

        Raises:
            ValueError: for another direction or a scale that is not above 0.
        """
        if direction not in ("smaller", "larger"):
            raise ValueError(f"direction {direction!r} is not known; it is 'smaller' or 'larger'")
        if not scale > 0:
            raise ValueError(f"scale {scale}; give the kB at which the reward ends, above 0")
        self._sign = -1.0 if direction == "smaller" else 1.0
        self._scale = scale
        self.range = (-1.0, 0.0) if direction == "smaller" else (0.0, 1.0)

    def __call__(self, *, completions: Column, log_metric: Any = None, **columns: Any) -> list[float | None]:
        """Return one value a completion; None for text, the least for a picture that cannot be read."""
        return picture_values(
            completions, lambda read: map(self._value, read.values()), refused=self.range[0], log_metric=log_metric
        )

    def _value(self, rgb: Image.Image) -> float:
        file = io.BytesIO()
        rgb.save(file, format="JPEG", quality=QUALITY)
        return self._sign * min(1.0, file.tell() / 1000 / self._scale)
