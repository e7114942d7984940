"""Pictures as 8-bit RGB: one way to open a file, to refuse what has no pixels to look at, and to convert the rest.

What a policy, a reward, a judge and a report see of a picture are the same pixels, with nothing beside them that
another program could read otherwise (a rotation, a color profile, a transparent color). A picture that has none
(broken, enormous, of real numbers) is refused with a kind, so that refusals can be counted. Torch-free.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import open_regular

_LOGGER = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Those that are read, by every command; of several frames the first."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

MAX_PIXELS = 64_000_000
"""By default: phones take 12 to 50 million, and unpacked to RGB it is 192 MB, where a bomb of a few kB asks for GB."""
MAX_ASPECT = 64
"""Longer side by shorter side: to make the shorter one 224, a line of pixels would be stretched without end."""

RefusalKind = Literal["too_large", "empty", "too_thin", "real_numbers", "out_of_range", "shape", "unreadable"]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations. Pillow's own function writes the other tags anew and fails where one of them is malformed."""
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


def open_picture(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the 8-bit RGB picture of a file or of its bytes, fully read; see :func:`as_rgb`.

    A picture of more than ``max_pixels`` is refused by its header, before it is decoded. Of several frames the first is
    read, which is logged once a file.

    Raises:
        FileNotFoundError: if there is no such file.
        PictureError: naming the file: for what is no regular file or no picture of ``FORMATS``, is damaged or too
            large.
    """
    with _opened(source, max_pixels) as picture:
        _check_size(picture.width, picture.height, max_pixels)
        _tell_of_frames(source, picture)
        return as_rgb(picture, max_pixels)


def check_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a file as :func:`open_picture` does, as far as its header and its end tell.

    Nothing is decoded unless the end does not tell: of GIF, BMP and TIFF, and behind a JPEG of a camera that appends
    a film.

    Raises:
        FileNotFoundError: if there is no such file.
        PictureError: as above.
    """
    with _opened(path, max_pixels) as picture:
        _check_size(picture.width, picture.height, max_pixels)
        _tell_of_frames(path, picture)
        if not _ends_whole(path, picture.format):
            picture.seek(0)
            picture.load()


def as_url(picture: Image.Image) -> str:
    """Return a picture as the data URL of a PNG."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@contextmanager
def _opened(source: Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Give a picture of which only the header has been read; name what is wrong with it, inside the context, too."""
    try:
        with _readable(source) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the lower limit
            with Image.open(file, formats=FORMATS) as picture:
                yield picture
    except MissingFileError:
        raise
    except UserError as error:
        kind = error.kind if isinstance(error, PictureError) else "unreadable"
        raise PictureError(kind, _named(source, error)) from error
    except Image.DecompressionBombError as error:
        said = f"a picture over the limit of {max_pixels} pixels ({error}); resize it"
        raise PictureError("too_large", _named(source, said)) from error
    except UnidentifiedImageError as error:
        said = f"no picture of a format that is read ({', '.join(FORMATS)}), or a broken one; save it again"
        raise PictureError("unreadable", _named(source, said)) from error
    except _DECODING_ERRORS as error:
        raise PictureError("unreadable", _named(source, _undecodable(error))) from error


@contextmanager
def _readable(source: Path | bytes) -> Iterator[BinaryIO]:
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        yield file


def _named(source: Path | bytes, said: object) -> str:
    if isinstance(source, bytes) or str(said).startswith(str(source)):
        return str(said)
    return f"{source}: {said}"


def _tell_of_frames(source: Path | bytes, picture: Image.Image) -> None:
    """Log that only the first frame of a file is read; the others of a camera's MPO are previews and depths."""
    if isinstance(source, Path) and picture.format != "MPO" and getattr(picture, "is_animated", False):
        _log_frames(source)


@cache
def _log_frames(path: Path) -> None:
    _LOGGER.warning("%s holds several frames; only the first is read", path)


def _ends_whole(path: Path, kind: str | None) -> bool:
    """Return whether a file's end mark, or the size that its header states, says that it was not cut off.

    Raises:
        PictureError: if it was, which the end of PNG and WebP alone can say.
    """
    with open_regular(path) as file:
        header = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    if kind == "WEBP":
        is_whole = size >= 8 + int.from_bytes(header[4:], "little")
    else:
        is_whole = _END_MARK.get(kind or "", b"no mark") in tail
    if not is_whole and kind in ("WEBP", "PNG"):
        raise _undecodable("it ends too early")
    return is_whole


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

    Transparency goes on white, 16-bit gray is scaled to 8 bits, palettes and CMYK are converted, a camera's rotation is
    applied, of an animation the first frame counts, and an array is quantized once (see :func:`quantized`). Of 32-bit
    gray, whole numbers up to 255 and real numbers between 1 and 255 are the levels, whole numbers beyond them 16-bit
    gray. An array is [H, W, C] or, where only that can be meant, [C, H, W]: C is 3, 1 for gray, or 4 for RGBA in uint8.

    ``max_pixels`` is for what is still to be unpacked: a picture in memory may have any number.

    Raises:
        PictureError: for a picture of no pixels, of more than ``max_pixels``, too thin, broken, or of real numbers
            whose white is not known; for an array of another shape.
    """
    if isinstance(picture, np.ndarray):
        pixels = _channels_last(picture)
        _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
        return quantized(pixels)
    is_unpacked = type(picture) is Image.Image
    _check_size(picture.width, picture.height, picture.width * picture.height if is_unpacked else max_pixels)
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
    turn = _TURNS.get(_orientation(picture))
    found = _without_modes(picture)
    if turn is not None:
        found = found.transpose(turn)
    if found.info or type(found) is not Image.Image:
        found = found.copy()
        found.info = {}
    return found


def _orientation(picture: Image.Image) -> int:
    """Return how the camera was held; upright where the EXIF block says nothing that can be read."""
    try:
        found = picture.getexif().get(_ORIENTATION)
    except _DECODING_ERRORS:
        return 1
    return found if isinstance(found, int) else 1


def _without_modes(picture: Image.Image) -> Image.Image:
    has_key = "transparency" in picture.info
    if picture.mode == "RGB" and not has_key:
        return picture
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _from_deep_gray(picture).convert("RGB")
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or has_key:
        key = picture.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # of 16-bit colors, of which Pillow keeps the upper bytes alone
            picture = picture.copy()
            picture.info["transparency"] = tuple(level >> 8 for level in key)
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _from_deep_gray(picture: Image.Image) -> Image.Image:
    """Return 8-bit gray: real numbers cut off, 0..65535 rounded to 0..255, a transparent value white."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F" and not 1 < high < np.inf:
        said = f"a picture of real numbers (mode F) up to {high:g} has no agreed white; convert it to RGB"
        raise PictureError("real_numbers", said)
    if not (low >= 0 and high <= (255 if picture.mode == "F" else 65535)):
        given = f"gray values {low:g}..{high:g}"
        wanted = "0..255" if picture.mode == "F" else "0..65535"
        raise PictureError("out_of_range", f"{given}; wanted {wanted}: convert the picture to 8-bit RGB")
    if picture.mode == "F" or (picture.mode == "I" and high <= 255):
        levels = values.astype(np.uint8)
    else:
        levels = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    clear = picture.info.get("transparency")
    return Image.fromarray(np.where(values == clear, np.uint8(255), levels) if isinstance(clear, int) else levels)
