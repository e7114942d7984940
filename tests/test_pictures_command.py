import numpy as np
import pytest
from PIL import Image

from unigrpo.cli.pictures import join, keep, open_cells_of_box, open_cells_of_mask, shifted_codes
from unigrpo.cli.sample import parse_box
from unigrpo.errors import UserError


def test_box_opens_every_code_that_it_touches() -> None:
    is_open = open_cells_of_box(parse_box("0.25,0.5,0.75,1"), 4)
    assert is_open.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    assert open_cells_of_box((0.3, 0.3, 0.31, 0.31), 4).sum() == 1


@pytest.mark.parametrize("text", ["", "0,0,1", "a,b,c,d", "0.5,0,0.5,1", "0,0,2,1", "-0.1,0,1,1"])
def test_box_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--box"):
        parse_box(text)


def test_white_pixels_of_a_mask_open_their_codes() -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[0, 0] = 255
    pixels[5, 7] = 255
    is_open = open_cells_of_mask(Image.fromarray(pixels), 4)
    assert sorted(zip(*np.nonzero(is_open), strict=True)) == [(0, 0), (2, 3)]


def test_black_mask_is_refused() -> None:
    with pytest.raises(UserError, match="nothing in it is white"):
        open_cells_of_mask(Image.new("L", (8, 8)), 4)


@pytest.mark.parametrize(
    ("direction", "kept", "where"),
    [
        ("right", np.s_[:, 2:], np.s_[:, :2]),
        ("left", np.s_[:, :2], np.s_[:, 2:]),
        ("down", np.s_[2:, :], np.s_[:2, :]),
        ("up", np.s_[:2, :], np.s_[2:, :]),
    ],
)
def test_growing_keeps_the_half_beside_the_new_one(direction: str, kept: slice, where: slice) -> None:
    codes = np.arange(16).reshape(4, 4)
    moved, is_open = shifted_codes(codes, direction)
    assert (moved[where] == codes[kept]).all()
    assert not is_open[where].any()
    assert is_open.sum() == 8


@pytest.mark.parametrize("direction", ["left", "right", "up", "down"])
def test_grown_picture_holds_the_given_one_and_the_new_half(direction: str) -> None:
    given, made = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    pixels = np.asarray(join(given, made, direction))
    assert pixels.shape == ((8, 12, 3) if direction in ("left", "right") else (12, 8, 3))
    is_red = (pixels == (255, 0, 0)).all(axis=2)
    assert is_red.sum() == 64
    edge = {"left": is_red[:, 4:], "right": is_red[:, :8], "up": is_red[4:], "down": is_red[:8]}[direction]
    assert edge.all()


def test_only_the_open_cells_are_new() -> None:
    is_open = np.zeros((2, 2), dtype=bool)
    is_open[1, 0] = True
    pixels = np.asarray(keep(Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue"), is_open))
    is_blue = (pixels == (0, 0, 255)).all(axis=2)
    assert is_blue[4:, :4].all()
    assert is_blue.sum() == 16
