from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unigrpo.cli.app import run
from unigrpo.testing.tiny.make_tiny import make_tiny

PICTURE_TASKS = ("imagine", "inpaint", "extrapolate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny policy, a tiny image tokenizer and a picture, all untrained."""
    from safetensors.torch import save_file

    from unigrpo.quickstart.makers.image_tokenizer import SIZES, untrained
    from unigrpo.quickstart.makers.policy import make_policy

    folder = tmp_path_factory.mktemp("model")
    make_policy(folder / "policy")
    (folder / "tokenizer").mkdir()
    state = {name: tensor.contiguous() for name, tensor in untrained(SIZES, 0).state_dict().items()}
    save_file(state, folder / "tokenizer" / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


def _sample(model: Path, task: str, *options: str) -> int:
    tokenizer = () if task == "reason" else ("--image-tokenizer", str(model / "tokenizer"), "--image-size", "64")
    common = ("--dtype", "float32", "--prompt", "37+48=", "--steps", "4", "--length", "16")
    return run(["sample", str(model / "policy"), "--task", task, *tokenizer, *common, *options])


def test_text_is_printed_and_the_same_seed_gives_it_again(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert _sample(model, "reason", "--temperature", "1", "--seed", seed) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_question_about_a_picture_gets_text(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answer.txt"
    assert _sample(model, "understand", "--image", str(model / "picture.png"), "--out", str(out)) == 0
    assert capsys.readouterr().out == out.read_text() + "\n"


@pytest.mark.parametrize(
    ("task", "options", "size"),
    [
        ("imagine", [], (64, 64)),
        ("imagine", ["--guidance", "0", "--seed", "3"], (64, 64)),
        ("inpaint", ["--image", "picture.png", "--box", "0,0,0.5,0.5"], (64, 64)),
        ("extrapolate", ["--image", "picture.png"], (96, 64)),
        ("extrapolate", ["--image", "picture.png", "--direction", "up"], (64, 96)),
    ],
)
def test_picture_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, options: list[str], size: tuple[int, int]
) -> None:
    monkeypatch.chdir(model)
    out = tmp_path / "out.png"
    assert _sample(model, task, *options, "--out", str(out)) == 0
    with Image.open(out) as picture:
        assert picture.size == size
    assert list(tmp_path.iterdir()) == [out]


def test_inpainting_by_box_and_by_the_same_box_as_mask_agree(model: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:32, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pictures = []
    for region in (["--box", "0,0,0.5,0.5"], ["--mask", str(tmp_path / "mask.png")]):
        out = tmp_path / f"{len(pictures)}.png"
        assert _sample(model, "inpaint", "--image", str(model / "picture.png"), *region, "--out", str(out)) == 0
        with Image.open(out) as picture:
            pictures.append(np.asarray(picture).copy())
    assert (pictures[0] == pictures[1]).all()
    with Image.open(model / "picture.png") as picture:
        is_given = (pictures[0] == np.asarray(picture)).all(axis=2)
    assert is_given[32:].all() and is_given[:, 32:].all()  # outside the box, every pixel is the given one
    assert not is_given[:32, :32].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "imagine", "--prompt", "x"], "needs --image-tokenizer"),
        (["--task", "reason"], "needs --prompt"),
        (["--task", "reason", "--prompt", "x", "--image", "a.png"], "takes no --image"),
        (["--task", "understand", "--prompt", "x", "--image-tokenizer", "t"], "needs --image"),
        (["--task", "understand", "--prompt", "x", "--image-tokenizer", "t", "--image", "no.png"], "no file no.png"),
        (["--task", "imagine", "--prompt", "x", "--image-tokenizer", "t"], "wanted --out FILE.png"),
        (["--task", "reason", "--prompt", "x", "--box", "0,0,1,1"], "neither --mask nor --box"),
        (["--task", "reason", "--prompt", "x", "--temperature", "-1"], "temperature: given -1.0"),
        (["--task", "reason", "--prompt", "x"], "there is no folder ./no-model"),
        (["--task", "reason", "--prompt", "x", "--out", "nodir/x.txt"], "nodir/x.txt: there is no folder nodir"),
        (
            ["--task", "imagine", "--prompt", "x", "--image-tokenizer", "t", "--out", "x.png", "--length", "15"],
            "--length 15: a picture is a square of codes; wanted a square number, such as 9 or 16",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_message(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "./no-model", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folder_without_an_adapter_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _sample(model, "reason", "--adapter", str(tmp_path)) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_a_question_about_two_pictures_has_another_prompt_than_about_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    make_tiny("llada_v", tmp_path / "llada_v")
    Image.new("RGB", (60, 50), "red").save(tmp_path / "red.png")
    Image.new("RGB", (50, 60), "blue").save(tmp_path / "blue.png")
    options = [
        "--task",
        "understand",
        "--prompt",
        "which?",
        "--length",
        "8",
        "--temperature",
        "1",
        "--dtype",
        "float32",
    ]
    answers = []
    for names in (("red",), ("red", "blue"), ("blue", "red")):
        pictures = [word for name in names for word in ("--image", str(tmp_path / f"{name}.png"))]
        assert run(["sample", str(tmp_path / "llada_v"), *options, *pictures]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 3


def test_a_model_that_writes_no_pictures_fills_in_none(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny("llada", tmp_path / "llada")
    options = ["--image", str(model / "picture.png"), "--image-tokenizer", str(model / "tokenizer")]
    out = ["--out", str(tmp_path / "out.png")]
    for task in (["inpaint", "--box", "0,0,1,0.5"], ["extrapolate"]):
        assert run(["sample", str(tmp_path / "llada"), "--task", *task, *options, *out]) == 2
        assert "writes no pictures; MMaDA and Show-o checkpoints do" in capsys.readouterr().err
    assert run(["sample", str(tmp_path / "llada"), "--task", "extrapolate", *options, *options[:2], *out]) == 2
    assert "--task extrapolate takes one --image, given 2" in capsys.readouterr().err
