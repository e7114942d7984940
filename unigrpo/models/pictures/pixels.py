"""Pictures to pixels in [-1, 1] and back, as the reference prepares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unigrpo.pictures import as_rgb

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from unigrpo.types import ImageFit

PAD_COLOR = (255, 255, 255)
"""White, as MMaDA's `image_transform_pad` fills (parquet/my_dataset.py)."""


def picture_to_pixels(picture: Image, size: int, fit: ImageFit = "crop") -> Tensor:
    """Return [3, size, size] float32 in [-1, 1] of a picture that becomes a square, mean and std 0.5.

    crop: the shorter side resized (bicubic), the middle of the longer; squash: both sides resized; pad: white bars on
    both sides of the shorter one (half of them, rounded down, left or above), then resized.
    """
    squared = np.asarray(_squared(as_rgb(picture), size, fit), dtype=np.float32)
    return torch.from_numpy(squared / 255.0).permute(2, 0, 1).contiguous() * 2.0 - 1.0


def square_box(size: tuple[int, int], fit: ImageFit) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of what becomes the square of a picture of a width and height.

    Where it is padded, they lie outside of it.
    """
    width, height = size
    if fit == "squash":
        return 0, 0, width, height
    edge = min(size) if fit == "crop" else max(size)
    left, top = (width - edge) // 2, (height - edge) // 2
    if fit == "pad":
        left, top = -((edge - width) // 2), -((edge - height) // 2)
    return left, top, left + edge, top + edge


def _squared(picture: Image, size: int, fit: ImageFit) -> Image:
    from PIL import Image as images

    if fit == "crop":  # the reference resizes first
        shorter = min(picture.size)
        if shorter != size:
            width, height = (size * side // shorter for side in picture.size)
            picture = picture.resize((width, height), images.Resampling.BICUBIC)
        width, height = picture.size
        left, top = round((width - size) / 2), round((height - size) / 2)
        return picture.crop((left, top, left + size, top + size))
    if fit == "pad" and picture.width != picture.height:
        left, top, right, bottom = square_box(picture.size, fit)
        whole = images.new("RGB", (right - left, bottom - top), PAD_COLOR)
        whole.paste(picture, (-left, -top))
        picture = whole
    return picture.resize((size, size), images.Resampling.BICUBIC)


def pixels_to_picture(pixels: Tensor) -> Image:
    """Return the picture of [3, H, W] pixels in [-1, 1], each rounded once to its nearest uint8."""
    from PIL import Image as images

    levels = ((pixels.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images.fromarray(levels.permute(1, 2, 0).cpu().numpy())
