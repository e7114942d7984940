"""Any-resolution pictures (LLaVA-NeXT's way): a grid of tiles beside the whole, and their features as one map of rows.

The picture is fitted into the grid that keeps most of it, tiles are cut row by row, and a smaller copy of the whole,
squeezed to one tile, goes first. Of the tiles' features the padding is cut off again, and a row ends with a newline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unigrpo.errors import UserError
from unigrpo.pictures import as_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

SHRINK_FROM = 1.1
"""A map is shrunk where its side exceeds that of the most tiles by more than this factor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileSettings:
    """How a checkpoint reads pictures."""

    tile_size: int
    """Side of a tile in pixels."""
    resolutions: tuple[tuple[int, int], ...]
    """Width and height in pixels that a picture may be fitted into: multiples of a tile."""
    max_tiles: int | None = None
    """Features of the map beyond this many tiles' are shrunk; None never."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], tile_size: int) -> TileSettings:
        """Return the settings from the content of a config.json.

        Raises:
            UserError: a way of reading pictures that is not computed here, or a resolution that is no whole tiles.
        """
        aspect = str(config.get("image_aspect_ratio"))
        matched = re.fullmatch(r"anyres(?:_max_(\d+))?", aspect)
        merge = config.get("mm_patch_merge_type")
        if matched is None or merge != "spatial_unpad":
            raise UserError(
                f"config.json has image_aspect_ratio {aspect!r} and mm_patch_merge_type {merge!r}; this code computes "
                "anyres or anyres_max_N with spatial_unpad"
            )
        resolutions = _resolutions(config.get("image_grid_pinpoints"), tile_size)
        if not resolutions or any(side % tile_size for pair in resolutions for side in pair):
            raise UserError(
                f"config.json has image_grid_pinpoints {config.get('image_grid_pinpoints')!r}; wanted pairs of width "
                f"and height in multiples of the tower's {tile_size} pixels"
            )
        return cls(
            tile_size=tile_size, resolutions=resolutions, max_tiles=int(matched.group(1)) if matched.group(1) else None
        )


def _resolutions(given: Any, tile_size: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs of a list, or of a range of grids such as ``(1x1),...,(6x6)``."""
    if not isinstance(given, str):
        return tuple((int(width), int(height)) for width, height in given or ())
    corners = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+)x(\d+)\)", given)]
    if len(corners) < 2:
        return ()
    (left, top), (right, bottom) = corners[0], corners[-1]
    return tuple(
        (columns * tile_size, rows * tile_size) for columns in range(left, right + 1) for rows in range(top, bottom + 1)
    )


def fit(size: tuple[int, int], settings: TileSettings) -> tuple[int, int]:
    """Return the resolution for a picture of a width and height: the most of it that is kept, then the least waste."""
    width, height = size

    def score(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(settings.resolutions, key=score)


def cut_tiles(picture: Image, settings: TileSettings) -> Tensor:
    """Return [T, 3, S, S] float32 pixels in [-1, 1]: the whole squeezed to a tile, then the tiles row by row."""
    from PIL import Image as images

    picture = as_rgb(picture)
    width, height = fit(picture.size, settings)
    across, down = width / picture.width, height / picture.height
    if across < down:
        inner = (width, min(math.ceil(picture.height * across), height))
    else:
        inner = (min(math.ceil(picture.width * down), width), height)
    canvas = images.new("RGB", (width, height))
    canvas.paste(picture.resize(inner, images.Resampling.BICUBIC), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    side = settings.tile_size
    whole = np.asarray(picture.resize((side, side), images.Resampling.BICUBIC))
    grid = np.asarray(canvas).reshape(height // side, side, width // side, side, 3)
    tiles = np.concatenate([whole[None], grid.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)])
    return torch.from_numpy((tiles.astype(np.float32) / 255.0 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()


def pool(features: Tensor, stride: int) -> Tensor:
    """Return [T, K', D] of tiles' features [T, K, D], bilinearly reduced to a side of ceil(side / stride)."""
    side = math.isqrt(features.shape[1])
    size = math.ceil(side / stride)
    planes = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return functional.interpolate(planes, size=(size, size), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)


def lay_out(features: Tensor, size: tuple[int, int], settings: TileSettings, newline: Tensor) -> Tensor:
    """Return [F, D]: the whole's features, then those of the map of tiles without padding, a newline after each row.

    Args:
        features: [T, K, D] of the tiles of ``cut_tiles``.
        size: width and height of the picture.
        settings: those that cut it.
        newline: [D].
    """
    side = math.isqrt(features.shape[1])
    width, height = fit(size, settings)
    columns, rows = width // settings.tile_size, height // settings.tile_size
    tiles = features[1:].view(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
    plane = _without_padding(tiles.reshape(features.shape[-1], rows * side, columns * side), size)
    if settings.max_tiles is not None:
        _, high, wide = plane.shape
        times = math.sqrt(high * wide / (settings.max_tiles * side**2))
        if times > SHRINK_FROM:
            shrunk = (int(high // times), int(wide // times))
            plane = functional.interpolate(plane[None], size=shrunk, mode="bilinear")[0]
    ends = newline.to(plane.dtype)[:, None, None].expand(-1, plane.shape[1], 1)
    rows_with_ends = torch.cat((plane, ends), dim=-1).flatten(1).T
    return torch.cat((features[0], rows_with_ends))


def _without_padding(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Return [D, H', W']: the middle of [D, H, W] that a picture of a width and height fills."""
    _, high, wide = plane.shape
    width, height = size
    if width / height > wide / high:
        margin = (high - int(height * (wide / width))) // 2
        return plane[:, margin : high - margin]
    margin = (wide - int(width * (high / height))) // 2
    return plane[:, :, margin : wide - margin]


def count_features(size: tuple[int, int], settings: TileSettings, side: int) -> int:
    """Return how many features a picture of a width and height has, with ``side`` by ``side`` a tile."""
    columns, rows = (pixels // settings.tile_size for pixels in fit(size, settings))
    with torch.device("meta"):
        features = torch.empty(1 + columns * rows, side**2, 1)
        return len(lay_out(features, size, settings, torch.empty(1)))
