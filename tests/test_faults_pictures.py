"""A picture file has the same pixels for whoever reads it: those of Pillow's own conversions, in every mode."""

import io
import json
import logging
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from unigrpo.data.sources import load_prompts
from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import optional_file, regular_file
from unigrpo.pictures import MAX_PIXELS, PictureError, as_rgb, open_picture
from unigrpo.report.data import picture_url
from unigrpo.rewards.vision.pictures import read_pictures
from unigrpo.scoring.items import read_items
from unigrpo.settings.tasks import DataSettings
from unigrpo.types import Message, Prompt

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
KINDS = ("1", "L", "P", "P clear", "LA", "RGB", "RGB key", "L key", "RGBA", "I;16", "I;16 key", "I", "I 8", "F", "CMYK")
KINDS += ("PA", "I;16B")
FILES = {"PA": "TIFF", "I": "TIFF", "I 8": "TIFF", "F": "TIFF", "CMYK": "TIFF", "I;16B": "TIFF"}


def picture_of(kind, size, rng):
    """A picture of a mode, and what to save it with."""
    mode, _, more = kind.partition(" ")
    levels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    deep = rng.integers(0, 65536, size[::-1]).astype(np.uint16)
    if mode in ("I;16", "I;16B"):
        if mode == "I;16B":
            return Image.frombytes("I;16B", size, deep.astype(">u2").tobytes()), {}
        return Image.fromarray(deep), {"transparency": int(deep[0, 0])} if more else {}
    if mode == "I":
        return Image.fromarray((levels[..., 0] if more else deep.astype(np.int32) | 256).astype(np.int32)), {}
    if mode == "F":
        return Image.fromarray(np.maximum(levels[..., 0], 2).astype(np.float32) - np.float32(0.25)), {}
    if mode in ("P", "PA"):
        indices = Image.fromarray(levels[..., 0]).convert("P")
        indices.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tolist())
        if mode == "PA":
            indices = indices.convert("PA")
            indices.putalpha(Image.fromarray(levels[..., 1]))
        return indices, {"transparency": levels[..., 1].tobytes()[:200]} if more else {}
    picture = Image.fromarray(levels).convert(mode)
    return picture, {"transparency": picture.getpixel((0, 0))} if more else {}


def as_pillow(path):
    """Pillow's own steps: turn, scale 16 bits, lay on white."""
    picture = Image.open(io.BytesIO(path.read_bytes()))  # a mapped TIFF loses its turn
    picture.load()
    clear = picture.info.get("transparency")
    picture = ImageOps.exif_transpose(picture)
    values = np.asarray(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and values.max() > 255):
        gray = Image.fromarray(np.array([round(int(v) / 257) for v in values.ravel()], np.uint8).reshape(values.shape))
        if clear is not None:
            gray = Image.composite(Image.new("L", gray.size, 255), gray, Image.fromarray(values == clear))
        return gray.convert("RGB")
    if picture.mode in ("PA", "LA", "RGBA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def asked(folder, name, **data):
    (folder / "data.jsonl").write_text(json.dumps({"prompt": "what?", "image": name, "completion": "x"}) + "\n")
    source = DataSettings(jsonl=str(folder / "data.jsonl"), **data)
    return load_prompts(source, "understand", "understand", "train", 0)[0]


def assert_plain(picture, wanted):
    assert (type(picture), picture.mode, picture.size) == (Image.Image, "RGB", wanted.size)
    assert picture.tobytes() == wanted.tobytes()
    assert not picture.info and not picture.getexif()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), turn=st.integers(0, 9), size=SIDES, seed=st.integers(0, 9))
def test_policy_reward_and_score_see_pillows_rendering_of_a_file(tmp_path, kind, turn, size, seed):
    picture, options = picture_of(kind, size, np.random.default_rng(seed))
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{FILES.get(kind, 'PNG').lower()}"
    picture.save(path, exif=exif, **options)
    wanted = as_pillow(path)
    prompt = asked(tmp_path, path.name)
    assert_plain(prompt.images[0], wanted)
    assert_plain(read_pictures([Image.open(io.BytesIO(path.read_bytes()))])[0], wanted)
    assert_plain(read_items(tmp_path / "data.jsonl")[0].rollout().prompt.images[0], wanted)
    assert picture_url(tmp_path, path.name) == picture_url(tmp_path, saved_beside(path, wanted))


def test_a_picture_of_jpegs_own_colors_is_converted_as_pillow_does():
    """In memory: not every Pillow that we allow reads the file of this mode that it wrote."""
    picture = picture_of("YCbCr", (5, 3), np.random.default_rng(0))[0]
    assert_plain(as_rgb(picture), picture.convert("RGB"))


def saved_beside(path, picture):
    picture.save(path.parent / "plain.png")
    return "plain.png"


@pytest.mark.parametrize("turn", range(1, 9))
def test_all_turns_of_a_jpeg_show_the_same_scene(tmp_path, turn):
    left_red = Image.new("RGB", (32, 16), "blue")
    left_red.paste("red", (0, 0, 16, 16))
    back = {6: 8, 8: 6}.get(turn, turn)
    exif = Image.Exif()
    exif[0x0112] = back
    stored = ImageOps.exif_transpose(tagged(left_red, exif))
    exif[0x0112] = turn
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    seen = asked(tmp_path, "a.jpg").images[0]
    assert seen.size == (32, 16)
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(left_red)).max() < 4


def tagged(picture, exif):
    file = io.BytesIO()
    picture.save(file, format="PNG", exif=exif)
    return Image.open(file)


def test_broken_exif_leaves_the_pixels_as_they_are(tmp_path):
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.png", exif=b"Exif\x00\x00XX\x00\x2a\x00\x00\x00\x08")
    assert asked(tmp_path, "a.png").images[0].size == (4, 2)


@pytest.mark.parametrize("clear", [(0x1234, 0xAB00, 0x00FF), (0xFFFF, 0, 0x0102), (0, 0, 0)])
def test_the_transparent_color_of_16_bit_colors_is_white(tmp_path, clear):
    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    row = np.array([clear, (0x8000, 0x4000, 0x2000)], dtype=">u2").tobytes()
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"tRNS", np.array(clear, dtype=">u2").tobytes()),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    shown = asked(tmp_path, "deep.png").images[0]
    assert [shown.getpixel((0, 0)), shown.getpixel((1, 0))] == [(255, 255, 255), (128, 64, 32)]


def test_black_drawing_on_a_clear_ground_is_seen(tmp_path):
    drawing = np.zeros((8, 8, 4), np.uint8)
    drawing[2:4, :, 3] = 255
    Image.fromarray(drawing).save(tmp_path / "a.png")
    seen = np.asarray(asked(tmp_path, "a.png").images[0])
    assert (seen[2:4] == 0).all() and (seen[4:] == 255).all()


def test_adobes_inverted_cmyk_is_turned_back(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)  # Pillow writes Adobe's mark
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert np.abs(np.asarray(asked(tmp_path, "a.jpg").images[0])[0, 0].astype(int) - (255, 0, 0)).max() <= 3


def test_pictures_of_a_users_class_are_read_alike(tmp_path):
    source = load_prompts(DataSettings(use=f"{__file__}:Turned", image_fit="pad"), "x", "understand", "train", 0)
    prompt = source[0]
    assert (prompt.images[0].size, prompt.image_fit) == ((2, 6), "pad")
    assert not prompt.images[0].info
    with pytest.raises(UserError, match=r"Turned: prompt '1': .*limit of 4; resize it"):
        load_prompts(DataSettings(use=f"{__file__}:Turned", max_pixels=4), "x", "understand", "train", 0)[1]
    with pytest.raises(UserError, match=r"Turned: prompt '2' has a str for a picture; give PIL images"):
        source[2]


class Turned:
    """Pictures that were opened and not yet read."""

    def __init__(self, split, seed):
        pass

    def __getitem__(self, index):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = tagged(Image.new("RGB", (6, 2)), exif) if index < 2 else "a.png"
        return Prompt(id=str(index), kind="understand", messages=(Message(role="user", text="?", images=(picture,)),))


def bomb(path, width, height):
    """A BMP whose header asks for pixels that are not there."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + 9, 0, 0, 54) + header + b"\x00" * 9)


def test_a_phones_photo_is_read_and_a_bomb_is_refused_by_its_header(tmp_path):
    Image.new("L", (6000, 4000)).save(tmp_path / "phone.png", compress_level=1)
    assert asked(tmp_path, "phone.png").images[0].size == (6000, 4000)
    with pytest.raises(UserError, match=r"data\.jsonl:1: .*phone\.png: .*6000 x 4000 .*limit of 16000000; resize it"):
        asked(tmp_path, "phone.png", max_pixels=16_000_000)
    for side in (8_001, 30_000):
        bomb(tmp_path / "bomb.bmp", side, side)
        with pytest.raises(UserError, match=r"data\.jsonl:1: .*bomb\.bmp: .*limit of 64000000.*resize it"):
            asked(tmp_path, "bomb.bmp")
    assert DataSettings.model_fields["max_pixels"].default == MAX_PIXELS
    assert read_pictures([Image.new("RGB", (8_001, 8_000))])[0].size == (8_001, 8_000)  # in memory: nothing to unpack


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_read_and_said_so_once(tmp_path, kind, caplog):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING):
        assert_plain(asked(tmp_path, path.name).images[0], frames[0])
        assert_plain(read_items(tmp_path / "data.jsonl")[0].rollout().prompt.images[0], frames[0])
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} holds several frames; only the first is read"
    ]


def test_a_photo_with_a_film_behind_it_is_whole_and_without_its_end_is_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole + b"\x00" * 9_000)
    assert asked(tmp_path, "a.jpg").images[0].size == (64, 64)
    for kind in ("gif", "bmp", "tiff"):
        Image.fromarray(noise).save(tmp_path / f"a.{kind}")
        content = (tmp_path / f"a.{kind}").read_bytes()
        (tmp_path / f"a.{kind}").write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=rf"data\.jsonl:1: .*a\.{kind}: "):
            load_prompts(
                DataSettings(jsonl=str(rows(tmp_path, f"a.{kind}"))), "understand", "understand", "train", 0
            )  # when the file is read, not in the middle of a run


def rows(folder, *names):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": "?", "image": name}) + "\n" for name in names))
    return path


def odd_files(folder):
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop2.png")
    (folder / "loop2.png").symlink_to("loop.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket.png"))
    server.close()
    return {
        "folder.png": "is a folder; wanted a regular file",
        "pipe.png": "is a named pipe; wanted a regular file",
        "loop.png": "too many levels of symbolic links",
        "socket.png": "is a socket; wanted a regular file",
    }


def test_what_is_no_regular_file_is_refused_by_name_wherever_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    for name, why in odd_files(Path()).items():
        with pytest.raises(UserError, match=rf"data\.jsonl:1: picture .*{name}.*{why}"):
            asked(tmp_path, name)
        with pytest.raises(UserError, match=rf"data\.jsonl:1: picture .*{name}.*{why}"):
            read_items(tmp_path / "data.jsonl")
        with pytest.raises(PictureError, match=rf"{name}.*{why}"):
            open_picture(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}.*{why}"):
            load_prompts(DataSettings(jsonl=name), "reason", "reason", "train", 0)
        with pytest.raises(UserError, match=rf"{name}.*{why}"):
            optional_file(Path(name))
        assert picture_url(tmp_path, name) is None
    with pytest.raises(UserError, match="/dev/zero is a device"):
        regular_file(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["a\0b.png", "data:image/png;base64," + "iVBORw0KGgo" * 3_000, "x" * 300 + ".png"])
def test_a_name_that_no_file_can_have_is_an_error_of_its_line(tmp_path, name):
    with pytest.raises(UserError, match=r"data\.jsonl:1: ") as refused:
        asked(tmp_path, name)
    assert len(str(refused.value)) < 600


def test_a_link_that_leads_nowhere_is_no_absent_file(tmp_path):
    (tmp_path / "gone").symlink_to("nowhere")
    assert optional_file(tmp_path / "none") is None
    with pytest.raises(MissingFileError, match=r"there is no file .*gone"):
        optional_file(tmp_path / "gone")


def test_a_camera_shows_nothing_but_pixels_to_a_judge():
    picture = Image.new("RGB", (2, 2))
    picture.info = {"icc_profile": b"profile", "exif": b"", "transparency": (1, 2, 3)}
    assert as_rgb(picture).info == {}
    assert picture.info  # the given one stays as it is
