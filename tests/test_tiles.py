"""Any-resolution pictures: tiles and feature counts equal the reference's, at its released sizes, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_specimens import IS_RESIZE_EXACT
from PIL import Image

from unigrpo.models.pictures.tiles import TileSettings, count_features, cut_tiles, fit, lay_out, pool

GOLDEN = Path(__file__).parent / "golden"
LEVELS_OFF = 0 if IS_RESIZE_EXACT else 1
"""Of 255."""
ROUNDING = 1e-3
"""Of a level: what float32 loses between a level and its place in [-1, 1]."""
ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
RELEASED = {
    "lladav_tiny": ({"image_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": "(1x1),...,(6x6)"}, 27),
    "lavida_tiny": (
        {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
        },
        14,
    ),
}


def read(folder: str, name: str) -> dict:
    return json.loads((GOLDEN / folder / name).read_text())


@pytest.mark.parametrize("name", ["square", "wide", "tall", "big"])
@pytest.mark.parametrize(("folder", "side"), [("lladav_tiny", 7), ("lavida_tiny", 4)])
def test_tiles_and_their_number_of_features_equal_the_reference(folder: str, side: int, name: str) -> None:
    settings = TileSettings.from_dict(read(folder, "config.json"), 56)
    with np.load(GOLDEN / folder / "golden.npz") as file:
        picture, wanted = Image.fromarray(file[f"image_{name}"]), torch.from_numpy(file[f"pixel_u8_{name}"])
    levels = (cut_tiles(picture, settings) * 0.5 + 0.5) * 255
    assert (levels - wanted.float()).abs().max() <= LEVELS_OFF + ROUNDING
    assert count_features(picture.size, settings, side) == read(folder, "cases.json")["images"][name]["image_tokens"]


@pytest.mark.parametrize("folder", RELEASED)
def test_grids_and_features_of_the_released_sizes(folder: str) -> None:
    changes, side = RELEASED[folder]
    settings = TileSettings.from_dict(ANYRES | changes, 384)
    wanted = read(folder, "cases.json")["anyres_release_geometry"]
    assert len(wanted) >= 10
    for row in wanted:
        size = (row["w"], row["h"])
        assert [pixels // 384 for pixels in fit(size, settings)] == row["grid_wh"], size
        assert count_features(size, settings, side) == row["image_tokens"], size


def test_a_map_is_the_tiles_side_by_side_with_a_newline_a_row() -> None:
    settings = TileSettings(tile_size=2, resolutions=((4, 2),))
    features = torch.arange(12.0).view(3, 4, 1)  # the whole 0..3, the left tile 4..7, the right tile 8..11
    found = lay_out(features, (4, 2), settings, torch.tensor([-1.0]))
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]


def test_what_pads_a_picture_to_its_grid_has_no_features() -> None:
    settings = TileSettings(tile_size=4, resolutions=((4, 4),))
    features = torch.arange(32.0).view(2, 16, 1)
    found = lay_out(features, (4, 2), settings, torch.tensor([-1.0]))  # twice as wide as high: the two middle rows
    assert found[16:, 0].tolist() == [20, 21, 22, 23, -1, 24, 25, 26, 27, -1]


def test_pooling_an_even_side_by_two_is_the_mean_of_four() -> None:
    features = torch.rand(2, 16, 3, generator=torch.Generator().manual_seed(0))
    means = features.view(2, 2, 2, 2, 2, 3).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(pool(features, 2), means)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_aspect_ratio": "pad"}, "anyres or anyres_max_N with spatial_unpad"),
        ({"mm_patch_merge_type": "flat"}, "anyres or anyres_max_N with spatial_unpad"),
        ({"image_grid_pinpoints": [[100, 75]]}, "multiples of the tower's 50 pixels"),
        ({"image_grid_pinpoints": "(1x1)"}, "multiples of the tower's"),
    ],
)
def test_other_ways_of_reading_pictures_are_refused(changes: dict, message: str) -> None:
    given = ANYRES | {"image_grid_pinpoints": [[60, 120]]} | changes
    with pytest.raises(ValueError, match=message):
        TileSettings.from_dict(given, 50 if "image_grid_pinpoints" in changes else 60)
