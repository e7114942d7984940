"""Pictures as 8-bit RGB: one way to open a file, to refuse what has no pixels to look at, and to convert the rest.

What a policy sees of a prompt's picture and what a reward sees of it are the same pixels. A picture that has none
(broken, enormous, of real numbers) is refused with a kind, so that refusals can be counted. Torch-free.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unigrpo.errors import MissingFileError, UserError

MAX_PIXELS = 64_000_000
MAX_ASPECT = 64
"""Longer side by shorter side: to make the shorter one 224, a line of pixels would be stretched without end."""

RefusalKind = Literal["too_large", "empty", "too_thin", "real_numbers", "out_of_range", "shape", "unreadable"]

_ORIENTATION = 0x0112  # EXIF
_CHANNELS = (1, 3, 4)
_END_MARK = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL_BYTES = 4096
"""In which the end mark must stand: some writers leave bytes after it."""
_PYTHON_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError)
_DECODING_ERRORS = (*_PYTHON_ERRORS, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow's decoders raise for broken files."""


class PictureError(UserError):
    """A picture without pixels to look at."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: RefusalKind = kind


def open_picture(
    source: Path | bytes, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Return the 8-bit RGB picture of a file or of its bytes, fully read; see :func:`as_rgb`.

    A picture of more than ``max_pixels`` is refused before it is decoded; ``formats`` are Pillow's names of those read.

    Raises:
        FileNotFoundError: if there is no such file.
        PictureError: for a file that is no picture of these formats, is damaged or too large.
    """
    with _opened(source, max_pixels, formats) as picture:
        return as_rgb(picture, max_pixels).copy()  # a picture as Pillow opens it holds on to its file


def check_picture(path: Path, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> None:
    """Refuse a file as :func:`open_picture` does, as far as its header and its end tell; nothing is decoded.

    Raises:
        FileNotFoundError: if there is no such file.
        PictureError: as above.
    """
    with _opened(path, max_pixels, formats) as picture:
        _check_size(picture.width, picture.height, max_pixels)
        _check_end(path, picture.format)


@contextmanager
def _opened(source: Path | bytes, max_pixels: int, formats: tuple[str, ...] | None) -> Iterator[Image.Image]:
    """Give a picture of which only the header has been read; name what is wrong with it, inside the context, too."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the lower limit
            with Image.open(file, formats=formats) as picture:
                yield picture
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"picture {source!s} does not exist") from error
    except Image.DecompressionBombError as error:
        said = f"a picture over the limit of {max_pixels} pixels ({error}); resize it"
        raise PictureError("too_large", said) from error
    except UnidentifiedImageError as error:
        known = "" if formats is None else f" of a format that is read: {', '.join(formats)}"
        raise PictureError("unreadable", f"no picture{known}, or a broken one; save it again") from error
    except _DECODING_ERRORS as error:
        raise _undecodable(error) from error


def _check_end(path: Path, kind: str | None) -> None:
    """Refuse a file that was cut off, without decoding it: by its end mark, or by the size that its header states."""
    with path.open("rb") as file:
        header = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    if kind == "WEBP":
        is_whole = size >= 8 + int.from_bytes(header[4:], "little")
    else:
        is_whole = _END_MARK.get(kind or "", b"") in tail
    if not is_whole:
        raise _undecodable("it ends too early")


def _undecodable(why: object) -> PictureError:
    said = f"a picture that cannot be decoded ({why}); it is truncated or damaged: save it again"
    return PictureError("unreadable", said)


def shown_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture file as it is shown, by its header alone."""
    with Image.open(path) as picture:
        is_turned = picture.getexif().get(_ORIENTATION, 1) >= 5
        return (picture.height, picture.width) if is_turned else picture.size


def as_rgb(picture: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as 8-bit RGB.

    Transparency goes on white, 16-bit grey is scaled to 8 bits, palettes and CMYK are converted, a camera's rotation is
    applied, of an animation the first frame counts, and an array is quantised once (see :func:`quantized`). An array is
    [H, W, C] or, where only that can be meant, [C, H, W]: C is 3, 1 for grey, or 4 for RGBA in uint8.

    Raises:
        PictureError: for a picture of no pixels, of more than ``max_pixels``, too thin, broken, or of real numbers; for
            an array of another shape.
    """
    if isinstance(picture, np.ndarray):
        pixels = _channels_last(picture)
        _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
        return quantized(pixels)
    _check_size(picture.width, picture.height, max_pixels)
    try:
        return _converted(picture)
    except PictureError:
        raise
    except _DECODING_ERRORS as error:
        raise _undecodable(error) from error


def quantized(pixels: np.ndarray) -> Image.Image:
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


def _check_size(width: int, height: int, max_pixels: int) -> None:
    given = f"a picture of {width} x {height} pixels"
    if width * height > max_pixels:
        raise PictureError("too_large", f"{given}, over the limit of {max_pixels}; resize it")
    if width * height == 0:
        raise PictureError("empty", f"{given}; wanted at least one")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError("too_thin", f"{given}; its sides may differ by {MAX_ASPECT}: crop it")


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
        return _from_deep_gray(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or has_key:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _from_deep_gray(picture: Image.Image) -> Image.Image:
    """Map 0..65535 to 0..255, where 65535 is white, rounding to nearest."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        given = f"grey values {values.min()}..{values.max()}"
        raise PictureError("out_of_range", f"{given}; wanted 0..65535: convert the picture to 8-bit RGB")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
