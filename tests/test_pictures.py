"""Pictures of every kind become 8-bit RGB, or are refused with a kind that can be counted."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unigrpo.pictures import PictureError, as_rgb, open_picture, quantized
from unigrpo.rewards.jpeg_size import JpegSize
from unigrpo.rewards.process import wire
from unigrpo.rewards.scene import Scene
from unigrpo.rewards.vision.pictures import RefusedPicture, is_picture, log_refusals, settled


def noise(size=(12, 8), seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def empty_png(width, height):
    """A PNG that says how large it is and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def sent(picture):
    """The picture as a reward in a worker gets it."""
    frame = wire.encode({"picture": picture})
    num_document, num_payload = struct.unpack(">QQ", frame[:16])
    assert len(frame) == 16 + num_document + num_payload
    return wire.decode(frame)["picture"]


def refusal_of(content):
    with pytest.raises(PictureError) as refused:
        open_picture(content)
    return refused.value.kind


def same(one, other):
    return one.mode == other.mode == "RGB" and one.size == other.size and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_file_of_any_lossless_kind_has_the_pixels_that_were_saved(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert same(open_picture(saved(noise(), kind, **options)), noise())


def test_camera_rotation_is_applied_and_then_gone():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned by a quarter
    turned = Image.open(io.BytesIO(saved(noise(), "PNG", exif=exif)))
    wanted = noise().transpose(Image.Transpose.ROTATE_270)
    assert same(as_rgb(turned), wanted)
    assert same(as_rgb(as_rgb(turned)), wanted)
    assert same(sent(Image.open(io.BytesIO(saved(noise(), "PNG", exif=exif)))), wanted)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_counts_wherever_it_stands(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = Image.open(io.BytesIO(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)))
    moving.seek(2)
    assert same(as_rgb(moving), frames[0])


def test_sixteen_bit_file_keeps_its_tones():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    read = open_picture(saved(deep, "PNG"))
    assert [read.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
    assert same(sent(deep), read)


def test_cmyk_file_keeps_its_colors():
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    read = open_picture(saved(ink, "JPEG", quality=95))
    assert np.abs(np.asarray(read).astype(int) - np.array([255, 0, 0])).max() <= 3


def test_palette_and_its_transparent_color_survive_the_way_to_a_worker():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    assert [sent(palette).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_transparent_color_of_an_rgb_picture_is_white():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (9, 9, 9))
    picture.info["transparency"] = (9, 9, 9)
    assert [as_rgb(picture).getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_file_is_refused_as_unreadable(kind):
    whole = saved(noise((64, 64)), kind)
    assert refusal_of(whole[: len(whole) // 2]) == "unreadable"


def test_picture_that_was_opened_and_then_proves_truncated_is_refused_on_its_way():
    lazy = Image.open(io.BytesIO(saved(noise((64, 64)), "JPEG")[:1500]))
    refused = sent(lazy)
    assert is_picture(refused)
    assert refused.kind == "unreadable"
    assert sent(refused) == refused
    assert settled(refused) is refused
    with pytest.raises(PictureError, match="cannot be decoded"):
        as_rgb(lazy)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_file_that_is_no_picture_is_refused(content):
    assert refusal_of(content) == "unreadable"


def test_missing_file_is_an_error_of_the_caller(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_picture(Path(tmp_path / "none.png"))


def test_enormous_picture_is_refused_before_it_is_decoded(monkeypatch):
    assert refusal_of(empty_png(30_000, 30_000)) == "too_large"
    assert refusal_of(empty_png(10_000, 10_000)) == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    lazy = Image.open(io.BytesIO(empty_png(30_000, 30_000)))
    with pytest.raises(PictureError, match="30000 x 30000"):
        as_rgb(lazy)
    assert sent(lazy).kind == "too_large"


def test_one_pixel_is_a_picture_and_none_is_not():
    assert as_rgb(Image.new("RGB", (1, 1), (1, 2, 3))).getpixel((0, 0)) == (1, 2, 3)
    assert settled(Image.new("RGB", (0, 5))).kind == "empty"


def test_line_of_pixels_is_refused():
    assert settled(Image.new("RGB", (1, 64))).size == (1, 64)
    assert settled(Image.new("RGB", (65, 1))).kind == "too_thin"


def test_real_numbers_and_values_beyond_sixteen_bits_are_refused():
    assert settled(Image.new("F", (2, 2))).kind == "real_numbers"
    assert settled(Image.new("I", (2, 2), 70_000)).kind == "out_of_range"
    assert settled(Image.new("I", (2, 2), -1)).kind == "out_of_range"


def test_floats_are_rounded_to_the_nearest_level_and_clamped():
    levels = np.arange(256)
    exact = (levels / 127.5 - 1).astype(np.float32)
    for shift in (0.0, 0.4 / 127.5, -0.4 / 127.5):
        row = np.repeat((exact + np.float32(shift))[None, :, None], 3, axis=-1)
        assert np.asarray(quantized(row))[0, :, 0].tolist() == levels.tolist()
    far = np.array([[[-7.0, 1.2, 0.0]]])
    assert as_rgb(far).getpixel((0, 0)) == (0, 255, 128)


def test_floats_that_are_no_numbers_are_refused():
    for value in (np.nan, np.inf):
        assert settled(np.full((2, 2, 3), value)).kind == "real_numbers"
    assert settled(np.zeros((2, 2, 3), dtype=np.int64)).kind == "out_of_range"
    assert settled(np.zeros((0, 2, 3))).kind == "empty"


def test_bytes_in_an_array_are_the_picture():
    assert same(as_rgb(np.asarray(noise())), noise())
    assert is_picture(np.zeros((2, 2, 3)))
    assert not is_picture(np.zeros((2, 2)))
    assert not is_picture("text")


@pytest.mark.parametrize(
    "stored", [np.asarray, lambda one: (np.asarray(one) / 127.5 - 1).astype(np.float32)], ids=["bytes", "floats"]
)
def test_channels_first_and_gray_arrays_are_read(stored):
    assert same(as_rgb(stored(noise()).transpose(2, 0, 1)), noise())
    gray = noise().convert("L")
    assert same(as_rgb(stored(gray)[:, :, None]), gray.convert("RGB"))
    assert same(as_rgb(stored(gray)[None]), gray.convert("RGB"))


def test_transparency_of_an_array_goes_on_white():
    clear = noise().convert("RGBA")
    clear.putpixel((3, 2), (9, 9, 9, 0))
    assert same(as_rgb(np.asarray(clear)), as_rgb(clear))
    assert same(as_rgb(np.asarray(clear).transpose(2, 0, 1)), as_rgb(clear))
    assert settled(np.zeros((8, 8, 4), np.float32)).kind == "shape"


@pytest.mark.parametrize("shape", [(3, 8, 1), (4, 8, 4), (8, 8, 2), (8, 8, 8)])
def test_array_that_may_be_several_pictures_or_none_is_refused_and_counted(shape):
    logged = {}
    pixels = np.zeros(shape, np.uint8)
    assert JpegSize()(prompts=[""], completions=[pixels], log_metric=logged.__setitem__) == [-1.0]
    assert logged == {"pictures/refused_fraction": 1.0, "pictures/refused_fraction/shape": 1.0}


def test_refusals_are_counted_by_kind():
    logged = {}
    log_refusals([noise(), RefusedPicture("empty", ""), noise(), RefusedPicture("too_thin", "")], logged.__setitem__)
    assert logged == {
        "pictures/refused_fraction": 0.5,
        "pictures/refused_fraction/empty": 0.25,
        "pictures/refused_fraction/too_thin": 0.25,
    }
    log_refusals([], logged.__setitem__)


def test_refused_picture_of_the_policy_gets_the_least_and_leaves_its_neighbors_alone():
    broken = RefusedPicture("unreadable", "cut")
    for reward in (JpegSize(), JpegSize("larger")):
        values = reward(prompts=["", ""], completions=[noise(), broken])
        assert values == [reward(prompts=[""], completions=[noise()])[0], reward.range[0]]
    asked = [[["red", "circle"], ["blue", "square"]]] * 2
    assert Scene()(prompts=["", ""], completions=[broken, noise()], objects=asked, relation=["above"] * 2)[0] == 0.0
