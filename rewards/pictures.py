"""What image rewards share: is a completion a picture, and which 8-bit RGB pixels does it have?"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000


def is_picture(completion: Any) -> bool:
    """Return whether a completion is a picture, not text."""
    return isinstance(completion, Image.Image)


def as_rgb(picture: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as 8-bit RGB: transparency on white, 16-bit grey scaled to 8 bits, palettes and CMYK converted.

    Raises:
        ValueError: for a picture of no pixels, of more than ``max_pixels``, or of real numbers.
    """
    width, height = picture.size
    if not 0 < width * height <= max_pixels:
        raise ValueError(f"a picture of {width} x {height} pixels; wanted 1..{max_pixels} pixels: resize it")
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F":
        raise ValueError("a picture of real numbers (mode F) has no agreed white; convert it to 8-bit RGB")
    if picture.mode.startswith("I"):
        return _from_deep_grey(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _from_deep_grey(picture: Image.Image) -> Image.Image:
    """Map 0..65535 to 0..255, where 65535 is white, rounding to nearest."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"grey values {values.min()}..{values.max()}; wanted 0..65535: convert the picture to 8-bit RGB"
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
