"""What image rewards share: is a completion a picture, and which 8-bit RGB pixels does it have?

A picture that has none (broken, enormous, of real numbers) is refused with a kind, so that refusals can be counted. One
that the policy made costs the policy the reward's minimum; one that came with the prompt says nothing of the answer.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
MAX_ASPECT = 64
"""Longer side by shorter side: to make the shorter one 224, a line of pixels would be stretched without end."""

RefusalKind = Literal["too_large", "empty", "too_thin", "real_numbers", "out_of_range", "shape", "unreadable"]

_ORIENTATION = 0x0112  # EXIF
_PLAIN_MODES = ("L", "RGB", "RGBA")
_CHANNELS = (1, 3, 4)
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for broken files."""


class PictureError(ValueError):
    """A picture without pixels to judge."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: RefusalKind = kind


@dataclass(frozen=True, slots=True)
class RefusedPicture:
    """Stands where a picture should be."""

    kind: RefusalKind
    reason: str


def is_picture(completion: Any) -> bool:
    """Return whether a completion is a picture, not text; arrays of three axes and refused pictures count."""
    if isinstance(completion, np.ndarray):
        return completion.ndim == 3
    return isinstance(completion, Image.Image | RefusedPicture)


def as_rgb(picture: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as 8-bit RGB.

    Transparency goes on white, 16-bit grey is scaled to 8 bits, palettes and CMYK are converted, a camera's rotation is
    applied, of an animation the first frame counts, and an array is quantised once (see :func:`quantised`). An array is
    [H, W, C] or, where only that can be meant, [C, H, W]: C is 3, 1 for grey, or 4 for RGBA in uint8.

    Raises:
        PictureError: for a picture of no pixels, of more than ``max_pixels``, too thin, broken, or of real numbers; for
            an array of another shape.
    """
    if isinstance(picture, RefusedPicture):
        raise PictureError(picture.kind, picture.reason)
    if isinstance(picture, np.ndarray):
        pixels = _channels_last(picture)
        _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
        return quantised(pixels)
    _check_size(picture.width, picture.height, max_pixels)
    try:
        return _converted(picture)
    except PictureError:
        raise
    except _DECODING_ERRORS as error:
        raise PictureError("unreadable", f"a picture that cannot be decoded ({error}); save it again") from error


def quantised(pixels: np.ndarray) -> Image.Image:
    """Return the picture of [H, W, C] uint8, or of real numbers in [-1, 1], each rounded once to its nearest level.

    Raises:
        PictureError: for NaN and infinity, for other kinds of numbers, and for real numbers with transparency.
    """
    if pixels.shape[2] == 4 and pixels.dtype == np.uint8:
        return _converted(Image.fromarray(np.ascontiguousarray(pixels), mode="RGBA"))
    if pixels.shape[2] == 4:
        raise PictureError("shape", f"pixels of {pixels.dtype} with transparency; give uint8, or three channels")
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels))
    if pixels.dtype.kind != "f":
        raise PictureError("out_of_range", f"pixels of {pixels.dtype}; wanted uint8, or real numbers in [-1, 1]")
    if not np.isfinite(pixels).all():
        raise PictureError("real_numbers", "pixels with NaN or infinity; the decoder that made them has diverged")
    levels = np.rint((pixels.astype(np.float32) + np.float32(1)) * np.float32(127.5))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """Return an array of three axes as [H, W, C]; where the last has 3 entries, these are the channels."""
    is_last, is_first = pixels.shape[-1] in _CHANNELS, pixels.shape[0] in _CHANNELS
    if pixels.ndim == 3 and (pixels.shape[2] == 3 or (is_last and not is_first)):
        return pixels
    if pixels.ndim == 3 and is_first and not is_last:
        return np.moveaxis(pixels, 0, 2)
    raise PictureError("shape", f"pixels of shape {list(pixels.shape)}; wanted [H, W, 3], or [H, W, 1] or [H, W, 4]")


def open_picture(source: Path | bytes) -> Image.Image | RefusedPicture:
    """Return the 8-bit RGB picture of a file or of its bytes; a refusal where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                return settled(picture)
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        return RefusedPicture("too_large", f"{error}; wanted 1..{MAX_PIXELS} pixels: resize it")
    except _DECODING_ERRORS as error:
        return RefusedPicture("unreadable", f"no picture, or a broken one ({error}); save it again")


def settled(picture: Any) -> Image.Image | RefusedPicture:
    """Return a picture's 8-bit RGB form, or the refusal in its place."""
    try:
        return as_rgb(picture)
    except PictureError as error:
        return RefusedPicture(error.kind, str(error))


def portable(picture: Any) -> Image.Image | RefusedPicture:
    """Return a picture that can cross to another process as mode, size and bytes; plain ones in memory as they are."""
    is_plain = type(picture) is Image.Image and picture.mode in _PLAIN_MODES and not picture.info
    return picture if is_plain and picture.width * picture.height <= MAX_PIXELS else settled(picture)


def read_pictures(
    pictures: Sequence[Any], log_metric: Callable[[str, float], None] | None = None
) -> list[Image.Image | RefusedPicture]:
    """Return the 8-bit RGB form of each picture, or its refusal; the same object is read once.

    Args:
        pictures: as they come.
        log_metric: told of the fraction refused, and of each kind that occurs.
    """
    read = {key: settled(picture) for key, picture in {id(picture): picture for picture in pictures}.items()}
    settled_pictures = [read[id(picture)] for picture in pictures]
    if log_metric is not None:
        log_refusals(settled_pictures, log_metric)
    return settled_pictures


def pictures_by_row(
    completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None
) -> dict[int, Image.Image | RefusedPicture]:
    """Return by row what :func:`read_pictures` makes of the completions that are pictures."""
    rows = [row for row, completion in enumerate(completions) if is_picture(completion)]
    return dict(zip(rows, read_pictures([completions[row] for row in rows], log_metric), strict=True))


def log_refusals(pictures: Sequence[Image.Image | RefusedPicture], log_metric: Callable[[str, float], None]) -> None:
    """Log the fraction of refused pictures as ``pictures/refused_fraction``, and that of each kind that occurs."""
    kinds = Counter(picture.kind for picture in pictures if isinstance(picture, RefusedPicture))
    if pictures:
        log_metric("pictures/refused_fraction", kinds.total() / len(pictures))
        for kind, count in sorted(kinds.items()):
            log_metric(f"pictures/refused_fraction/{kind}", count / len(pictures))


def _check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if width * height > max_pixels:
        raise PictureError("too_large", f"a picture of {width} x {height} pixels; wanted 1..{max_pixels}: resize it")
    if width * height == 0:
        raise PictureError("empty", f"a picture of {width} x {height} pixels; wanted at least one")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(
            "too_thin", f"a picture of {width} x {height} pixels; its sides may differ by {MAX_ASPECT}: crop it"
        )


def _converted(picture: Image.Image) -> Image.Image:
    if getattr(picture, "is_animated", False):
        picture.seek(0)
    picture.load()
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    has_key = "transparency" in picture.info
    if picture.mode == "RGB" and not has_key:
        return picture
    if picture.mode == "F":
        raise PictureError("real_numbers", "a picture of real numbers (mode F) has no agreed white; convert it to RGB")
    if picture.mode.startswith("I"):
        return _from_deep_grey(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or has_key:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _from_deep_grey(picture: Image.Image) -> Image.Image:
    """Map 0..65535 to 0..255, where 65535 is white, rounding to nearest."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError(
            "out_of_range",
            f"grey values {values.min()}..{values.max()}; wanted 0..65535: convert the picture to 8-bit RGB",
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
