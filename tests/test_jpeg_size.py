"""JPEG size, and the conversion of every kind of picture to 8-bit RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from unigrpo.pictures import as_rgb
from unigrpo.rewards.jpeg_size import JpegSize
from unigrpo.rewards.vision.pictures import is_picture
from unigrpo.testing.conformance import check_reward


def noise(side=64, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def score(reward, *pictures):
    return reward(prompts=["-"] * len(pictures), completions=list(pictures))


def test_value_is_the_files_length_over_the_scale():
    file = io.BytesIO()
    noise().save(file, format="JPEG", quality=95)
    assert score(JpegSize(), noise()) == [pytest.approx(-len(file.getvalue()) / 500_000)]
    assert score(JpegSize("larger", scale=20), noise()) == [pytest.approx(len(file.getvalue()) / 20_000)]


def test_blank_is_smaller_than_noise():
    blank, full = score(JpegSize(scale=20), Image.new("RGB", (64, 64)), noise())
    assert blank > full


def test_values_stay_in_the_declared_range():
    for direction in ("smaller", "larger"):
        reward = JpegSize(direction, scale=0.1)
        low, high = reward.range
        assert all(low <= value <= high for value in score(reward, noise(), Image.new("RGB", (8, 8))))


def test_reward_keeps_the_contract():
    shown = [noise(seed=seed) for seed in range(4)]
    check_reward(JpegSize("larger"), prompts=["-"] * 5, completions=[*shown, "text"])


def test_text_gets_none():
    assert score(JpegSize(), "a picture", noise())[0] is None
    assert not is_picture([{"role": "assistant", "content": "a picture"}])


@pytest.mark.parametrize("bad", [{"direction": "tiny"}, {"scale": 0}, {"scale": float("nan")}])
def test_wrong_settings_are_refused(bad):
    with pytest.raises(ValueError, match=r"direction|scale"):
        JpegSize(**bad)


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert as_rgb(half).getpixel((1, 1)) == pytest.approx((255, 127, 127), abs=1)
    gray = Image.new("LA", (2, 2), (40, 0))
    assert as_rgb(gray).getpixel((0, 0)) == (255, 255, 255)


def test_palette_is_looked_up_and_its_transparent_color_is_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert [as_rgb(palette).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    palette.info["transparency"] = 1
    assert [as_rgb(palette).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_sixteen_bit_gray_keeps_its_tones():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [as_rgb(deep).getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_cmyk_gray_and_bilevel_are_converted():
    assert as_rgb(Image.new("CMYK", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert as_rgb(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert as_rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_rgb_is_handed_on_unchanged():
    picture = noise()
    assert as_rgb(picture) is picture


def test_pictures_beyond_the_limit_or_of_real_numbers_are_refused():
    packed = io.BytesIO()
    Image.new("RGB", (10, 10)).save(packed, "PNG")
    with pytest.raises(ValueError, match=r"10 x 10 pixels, over the limit of 99"):
        as_rgb(Image.open(packed), max_pixels=99)
    assert as_rgb(Image.new("RGB", (10, 10)), max_pixels=99).size == (10, 10), "it is unpacked already"
    with pytest.raises(ValueError, match="0 x 4"):
        as_rgb(Image.new("RGB", (0, 4)))
    with pytest.raises(ValueError, match="mode F"):
        as_rgb(Image.new("F", (2, 2)))
    with pytest.raises(ValueError, match=r"wanted 0\.\.65535"):
        as_rgb(Image.new("I", (2, 2), 70000))
