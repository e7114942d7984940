"""Pictures to pixels in [-1, 1] and back, as the reference prepares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def picture_to_pixels(picture: Image, size: int) -> Tensor:
    """Return [3, size, size] float32 in [-1, 1]: shorter side resized (bicubic), centre cropped, mean and std 0.5."""
    from PIL import Image as images

    picture = picture.convert("RGB")
    shorter = min(picture.size)
    if shorter != size:
        width, height = (size * side // shorter for side in picture.size)
        picture = picture.resize((width, height), images.Resampling.BICUBIC)
    width, height = picture.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    cropped = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(cropped / 255.0).permute(2, 0, 1).contiguous() * 2.0 - 1.0


def pixels_to_picture(pixels: Tensor) -> Image:
    """Return the picture of [3, H, W] pixels in [-1, 1], each rounded once to its nearest uint8."""
    from PIL import Image as images

    levels = ((pixels.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images.fromarray(levels.permute(1, 2, 0).cpu().numpy())
