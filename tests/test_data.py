"""Prompts from files and classes: what is read, in which order, and what each mistake is called."""

import json
import struct
import zlib
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from unigrpo.data.sources import load_prompts
from unigrpo.pictures import as_rgb, open_picture
from unigrpo.settings.tasks import DataSettings
from unigrpo.types import Message, Prompt


class Squares:
    """A source as a user writes one."""

    def __init__(self, split, seed, size=3):
        self.split, self.seed, self.size = split, seed, size

    def __getitem__(self, index):
        text = f"{self.size}*{index}"
        return Prompt(
            id=text, kind="reason", messages=(Message(role="user", text=text),), answer=str(self.size * index)
        )


class SquaresThatTeach(Squares):
    num_prompts = 7

    def demonstration(self, prompt, generator, noise):
        return "?" if generator.random() < noise else prompt.answer


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def rows(count):
    return [{"question": f"q{n}", "answer": f"a{n} #### {n}", "level": n} for n in range(count)]


def reason(tmp_path, *lines, **settings):
    data = DataSettings(jsonl=write(tmp_path / "data.jsonl", *lines), columns={"prompt": "question"}, **settings)
    return load_prompts(data, "reason", "reason", "train", seed=0)


def test_columns_are_mapped_and_the_others_reach_the_rewards(tmp_path):
    prompt = reason(tmp_path, *rows(1), template="Solve: {prompt}\nAnswer:")[0]
    assert prompt.text == "Solve: q0\nAnswer:"
    assert prompt.answer == "a0 #### 0"
    assert dict(prompt.columns) == {"level": 0}


def test_each_epoch_is_a_new_order_of_the_same_prompts_and_a_seed_fixes_it(tmp_path):
    source = reason(tmp_path, *rows(50))
    first, second = ([source[epoch * 50 + n].id for n in range(50)] for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second
    assert [reason(tmp_path, *rows(50))[n].id for n in range(50)] == first
    assert source.num_prompts is None


def test_evaluation_prompts_come_once_in_the_order_of_their_own_file(tmp_path):
    data = DataSettings(
        jsonl=write(tmp_path / "train.jsonl", *rows(9)),
        eval_jsonl=write(tmp_path / "test.jsonl", *rows(3)),
        columns={"prompt": "question"},
    )
    source = load_prompts(data, "reason", "reason", "eval", seed=5)
    assert source.num_prompts == 3
    assert [source[n].text for n in range(3)] == ["q0", "q1", "q2"]
    with pytest.raises(IndexError, match="which has 3"):
        source[3]


def test_numbers_lists_and_null_arrive_as_they_are(tmp_path):
    lines = [{"question": "a", "answer": 7, "id": 1}, {"question": "b", "answer": [[1, 2], 3], "id": 2}]
    source = reason(tmp_path, *lines, {"question": "c", "answer": None, "id": 3})
    assert {source[n].id: source[n].answer for n in range(3)} == {"1": 7, "2": [[1, 2], 3], "3": None}


def test_a_prompt_may_be_a_conversation(tmp_path):
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    prompt = reason(tmp_path, {"question": turns}, template="<{prompt}>")[0]
    assert [(message.role, message.text) for message in prompt.messages] == [("system", "be brief"), ("user", "<hi>")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"data\.jsonl:1: not JSON"),
        ([rows(1)[0], "", "[1]"], r"data\.jsonl:3: a JSON list"),
        ([{"text": "x", "solution": 1}], r"data\.jsonl:1: no column 'question'.*'text', 'solution'"),
        ([{"question": 3}], r"data\.jsonl:1: prompt 3"),
        ([{"question": [{"role": "assistant", "content": "x"}]}], r"ends with the user"),
        (
            [{"question": "x", "id": "same"}, {"question": "y", "id": "same"}],
            r":2: id 'same' is already that of line 1",
        ),
        ([""], "holds no prompts"),
        ([{"question": "x", "image": "../secret.png"}], r":1: picture '\.\./secret\.png' lies outside"),
        ([{"question": "x", "image": 3}], r":1: image 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        reason(tmp_path, *lines)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "ok"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl:2: not JSON.*utf-8"):
        load_prompts(DataSettings(jsonl=str(path)), "reason", "reason", "train", 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        load_prompts(DataSettings(jsonl=str(tmp_path / "nowhere.jsonl")), "reason", "reason", "train", 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataSettings(), "exactly one"),
        (DataSettings(use="a:b", jsonl="c"), "exactly one"),
        (DataSettings(eval_jsonl="e"), r"set data\.jsonl"),
        (DataSettings(jsonl="c", arguments={"size": 1}), "belong to `use`"),
        (DataSettings(jsonl="c", template="no place"), "no {prompt}"),
        (DataSettings(jsonl="c", columns={"prompts": "x"}), "ours are prompt, answer"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(settings, "reason", "reason", "train", 0)


def picture_prompts(tmp_path, name):
    write(tmp_path / "data.jsonl", {"prompt": "what?", "image": name, "answer": "red"})
    return load_prompts(DataSettings(jsonl=str(tmp_path / "data.jsonl")), "understand", "understand", "train", 0)


def test_a_picture_is_read_beside_its_file(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (5, 3), (200, 0, 0)).save(tmp_path / "pictures" / "a.png")
    (picture,) = picture_prompts(tmp_path, "pictures/a.png")[0].images
    assert picture.size == (5, 3)
    assert picture.getpixel((0, 0)) == (200, 0, 0)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (4, 4)).save(outside)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.png").symlink_to(outside)
    with pytest.raises(ValueError, match="lies outside"):
        picture_prompts(tmp_path / "inside", "link.png")


def test_truncated_foreign_and_missing_pictures_are_named_with_their_line(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg", "cut.webp"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        assert len(picture_prompts(tmp_path, name)[0].images) == 1
        for size in (len(whole) // 2, len(whole) - 20):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"data\.jsonl:1: .*truncated or damaged"):
                picture_prompts(tmp_path, name)  # when the file is read, not in the middle of a run
    Image.fromarray(noise).save(tmp_path / "a.ppm")
    (tmp_path / "huge.png").write_bytes(png_that_claims(9_000, 9_000))
    for name, message in (
        ("a.ppm", ".*PNG, JPEG, WEBP"),
        ("none.png", "there is no picture 'none.png' in "),
        ("huge.png", ".*limit of 64000000"),
    ):
        with pytest.raises(ValueError, match=rf"data\.jsonl:1: {message}"):
            picture_prompts(tmp_path, name)  # when the file is read, not when the picture is needed


def png_that_claims(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])
def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path, side):
    (tmp_path / "huge.png").write_bytes(png_that_claims(side, side))
    with pytest.raises(ValueError, match="limit of 64000000"):
        open_picture(tmp_path / "huge.png")


def test_a_question_about_a_picture_needs_one(tmp_path):
    write(tmp_path / "data.jsonl", {"prompt": "what?"})
    with pytest.raises(ValueError, match=r":1: no picture in column 'image'"):
        load_prompts(DataSettings(jsonl=str(tmp_path / "data.jsonl")), "understand", "understand", "train", 0)


def test_a_class_gets_split_seed_and_arguments():
    source = load_prompts(
        DataSettings(use=f"{__file__}:Squares", arguments={"size": 5}), "reason", "reason", "eval", seed=3
    )
    assert source[4].answer == "20"
    assert source.num_prompts is None
    with pytest.raises(ValueError, match="demonstration"):
        source.demonstration(source[0], np.random.default_rng(0))
    with pytest.raises(
        ValueError, match="makes prompts of kind 'reason', but the task 'pictures' is of kind 'imagine'"
    ):
        load_prompts(DataSettings(use=f"{__file__}:Squares"), "pictures", "imagine", "eval", 0)[0]


def test_demonstrations_of_a_class_take_the_noise():
    source = load_prompts(DataSettings(use=f"{__file__}:SquaresThatTeach"), "reason", "reason", "train", 0)
    assert source.num_prompts == 7
    generator = np.random.default_rng(0)
    assert source.demonstration(source[2], generator) == "6"
    wrong = [source.demonstration(source[2], generator, 0.3) == "?" for _ in range(400)]
    assert 0.2 < np.mean(wrong) < 0.4


def test_demonstrations_of_a_file_are_completion_then_answer_and_the_picture_of_a_caption(tmp_path):
    generator = np.random.default_rng(0)
    lines = [
        {"question": "x", "answer": "1", "completion": "so 1", "id": "a"},
        {"question": "y", "answer": 2, "id": "b"},
    ]
    source = reason(tmp_path, *lines)
    found = {prompt.id: source.demonstration(prompt, generator) for prompt in (source[0], source[1])}
    assert found == {"a": "so 1", "b": "2"}
    with pytest.raises(ValueError, match="set it to 0"):
        source.demonstration(source[0], generator, 0.5)

    Image.new("RGB", (4, 4), (0, 0, 9)).save(tmp_path / "blue.png")
    write(tmp_path / "captions.jsonl", {"prompt": "blue", "image": "blue.png"})
    captions = load_prompts(DataSettings(jsonl=str(tmp_path / "captions.jsonl")), "imagine", "imagine", "train", 0)
    assert captions[0].images == ()
    assert captions.demonstration(captions[0], generator).getpixel((0, 0)) == (0, 0, 9)


def test_a_training_source_has_no_end(tmp_path):
    source = reason(tmp_path, *rows(2))
    assert len(list(islice((source[n] for n in range(10**6, 10**6 + 4)), 4))) == 4
    with pytest.raises(IndexError):
        source[-1]


def test_a_prompt_and_a_reward_see_the_same_pixels(tmp_path):
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    clear = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
    turned, exif = Image.new("RGB", (3, 1)), Image.Exif()
    exif[0x0112] = 6  # the camera was held turned by a quarter
    for picture, options in ((deep, {}), (clear, {}), (turned, {"exif": exif})):
        picture.save(tmp_path / "a.png", **options)
        (seen,) = picture_prompts(tmp_path, "a.png")[0].images
        assert type(seen) is Image.Image  # and no longer tied to its file
        assert seen.tobytes() == as_rgb(Image.open(tmp_path / "a.png")).tobytes()
    assert seen.size == (1, 3)
