"""One completion of a policy with its adapters: text, a picture, or a picture that is partly given.

Inpainting keeps what is outside a mask, extrapolation grows a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.errors import UserError
from unigrpo.export import adapter_folder
from unigrpo.models import load_policy
from unigrpo.pictures import MAX_PIXELS, open_picture
from unigrpo.rollouts import sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Canvas, ImageFit, Prompt

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the picture."""


def load_with_adapters(model: str, adapters: Sequence[Path], **settings: Any) -> Any:
    """Return a policy with adapters merged into it, in order.

    Adapters are PEFT folders, or run directories (their last checkpoint's); settings are keywords of `load_policy`.

    Raises:
        UserError: if there is no such checkpoint, adapter or run, or if they do not fit.
    """
    from unigrpo.models.adapter import merge_adapter

    policy = load_policy(model, **settings)
    for adapter in adapters:
        merge_adapter(policy, adapter_folder(adapter))
    return policy


def complete(policy: Any, canvas: Canvas, sampling: SamplingSettings, seed: int) -> str | Image:
    """Fill a canvas; return the picture of its open image span, or the text of its open text spans.

    Lengths and steps are the canvas's own.
    """
    out = sample(policy, [canvas], sampling, [seed])
    token_ids = out.token_ids[0].cpu().numpy()
    texts: list[str] = []
    for span in canvas.open_spans:
        if span.kind == "image_codes":
            return policy.decode_image(token_ids[span.start : span.stop], span)
        texts.append(policy.decode_text(token_ids[span.start : span.stop]))
    return "".join(texts)


def open_cells_of_box(box: Box, side: int) -> np.ndarray:
    """Return [side, side] bool: the codes that a box touches."""
    left, top, right, bottom = (edge * side for edge in box)
    is_open = np.zeros((side, side), dtype=bool)
    is_open[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    return is_open


def open_cells_of_mask(mask: Image, side: int, fit: ImageFit = "crop") -> np.ndarray:
    """Return [side, side] bool: the codes with a white pixel of the mask among theirs, the mask fitted as its picture.

    Raises:
        UserError: if nothing is white.
    """
    from unigrpo.models.pictures.pixels import square_box

    left, top, right, bottom = square_box(mask.size, fit)
    y, x = np.nonzero(np.asarray(mask.convert("L").crop((left, top, right, bottom))) > 127)
    is_open = np.zeros((side, side), dtype=bool)
    is_open[y * side // (bottom - top), x * side // (right - left)] = True
    if not is_open.any():
        raise UserError("--mask: nothing in it is white; white marks what to fill")
    return is_open


def shifted_codes(codes: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [side, side] with the half next to the growing side kept at the other side, and what is open.

    The new half has the kept half as context: growing to the right keeps the picture's right half on the left.
    """
    half = len(codes) // 2
    axis, moved = {"right": (1, -half), "left": (1, half), "down": (0, -half), "up": (0, half)}[direction]
    is_new = np.zeros(codes.shape, dtype=bool)
    np.moveaxis(is_new, axis, 0)[slice(-half, None) if moved < 0 else slice(half)] = True
    return np.roll(codes, moved, axis=axis), is_new


def join(given: Image, made: Image, direction: str) -> Image:
    """Return the given picture grown by the new half of the made one; both square and of one size."""
    from PIL import Image as images

    axis, is_before = {"right": (1, False), "left": (1, True), "down": (0, False), "up": (0, True)}[direction]
    size, half = given.width, given.width // 2
    old, new = np.asarray(given), np.asarray(made)
    added = new.take(range(half) if is_before else range(size - half, size), axis=axis)
    return images.fromarray(np.concatenate((added, old) if is_before else (old, added), axis=axis))


def keep(given: Image, made: Image, is_open: np.ndarray) -> Image:
    """Return the made picture in the open cells [side, side], and the given one's own pixels elsewhere."""
    from PIL import Image as images

    cells = images.fromarray(is_open.astype(np.uint8) * 255)
    return images.composite(made, given, cells.resize(given.size, images.Resampling.NEAREST))


def complete_picture(
    policy: Any,
    prompt: Prompt,
    sampling: SamplingSettings,
    *,
    image: Path,
    region: Box | Path | None,
    direction: str | None,
    seed: int,
    max_pixels: int = MAX_PIXELS,
) -> Image:
    """Return a given picture, filled in or grown.

    Args:
        policy: one with an image tokenizer.
        prompt: of task imagine.
        sampling: steps, temperature and guidance; the picture gives the number of codes.
        image: the given picture; it becomes a square of the policy's size in the policy's way.
        region: inpainting: a box in fractions, or the path of a mask picture; None extrapolates.
        direction: extrapolation: left, right, up or down.
        seed: of the row.
        max_pixels: of the given picture and mask.
    """
    import torch

    from unigrpo.models.pictures.pixels import picture_to_pixels, pixels_to_picture

    pixels = picture_to_pixels(open_picture(image, max_pixels=max_pixels), policy.image_size, policy.image_fit)
    with torch.no_grad():
        codes = policy.image_tokenizer.encode(pixels[None])[0].cpu().numpy()
    side = math.isqrt(len(codes))
    grid = codes.reshape(side, side)
    if direction is not None:
        grid, cells = shifted_codes(grid, direction)
    elif isinstance(region, Path):
        cells = open_cells_of_mask(open_picture(region, max_pixels=max_pixels), side, policy.image_fit)
    else:
        assert region is not None  # the command line refuses neither
        cells = open_cells_of_box(region, side)
    sampling = sampling.model_copy(update={"completion_length": len(codes)})
    made = complete(
        policy, policy.encode_image_canvas(prompt, sampling, grid.reshape(-1), cells.reshape(-1)), sampling, seed
    )
    assert not isinstance(made, str)  # an open image span decodes to a picture
    given = pixels_to_picture(pixels)
    return keep(given, made, cells) if direction is None else join(given, made, direction)
