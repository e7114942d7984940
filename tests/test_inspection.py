"""What is told of a checkpoint is counted from what it holds, without reading a weight."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from unigrpo.cli.app import run
from unigrpo.models import load_policy
from unigrpo.models.loading import stored_shapes
from unigrpo.sizing.inspection import inspect_model
from unigrpo.sizing.memory import Row
from unigrpo.testing.tiny.layouts import layouts
from unigrpo.testing.tiny.make_tiny import json_files, make_tiny


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


@pytest.mark.parametrize("family", layouts())
def test_counts_are_those_of_files_and_policy(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "policy")
    found = inspect_model(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    count = sum(math.prod(shape) for shape in shapes.values())
    assert by_name(found["parameters"])["total"].explanation == f"{count:,} in {len(shapes)} tensors"
    assert by_name(found["model"])["files"].explanation == f"all {len(shapes)} tensors fit, in 1 file"
    policy = load_policy(folder, dtype="float32")
    assert by_name(found["vocabulary"])["embedding"].value == str(policy.vocabulary.size)
    assert by_name(found["vocabulary"])["mask, eos, pad"].value.startswith(f"{policy.vocabulary.mask_token_id}, ")
    trains = any("trains" in row.value for row in found["tasks"])
    assert trains == ("adapter" in by_name(found["memory, estimated"]))
    if trains:
        layers = [policy.module.get_submodule(name) for name in policy.lora_targets]
        adapter = 16 * sum(layer.in_features + layer.out_features for layer in layers)  # type: ignore[operator, misc]
        megabytes = float(by_name(found["memory, estimated"])["adapter"].value.removesuffix(" MB"))
        assert megabytes == pytest.approx(adapter * 4 / 1e6, abs=0.051)


def test_released_sizes_are_counted_without_weights(tmp_path: Path) -> None:
    folder = make_tiny("llada", tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text()) | layouts()["llada"].releases["8b"]
    (folder / "config.json").write_text(json.dumps(config))
    found = inspect_model(folder)
    count = sum(math.prod(shape) for shape in stored_shapes(config, folder).values())
    assert by_name(found["parameters"])["total"].explanation == f"{count:,} in 291 tensors"
    assert by_name(found["memory, estimated"])["weights"].value == f"{count * 2 / 1e9:.2f} GB"
    files = by_name(found["model"])["files"]
    assert files.value == "do not load"
    assert "misshapen: model.transformer.wte.weight" in files.explanation


def test_a_family_that_generates_only_says_why(tmp_path: Path) -> None:
    found = inspect_model(make_tiny("diffusion_gemma", tmp_path / "policy"))
    reason = by_name(found["tasks"])["reason"]
    assert reason.value == "generates only"
    assert "noised with random ids" in reason.explanation
    assert {row.name for row in found["memory, estimated"]} == {"a row", "weights", "each actor, besides"}


def described(tmp_path: Path, family: str, release: str, **given: int) -> dict[str, list[Row]]:
    """What is told of a released size of which no weights are there."""
    for name, content in json_files(family, release=release).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return inspect_model(tmp_path, **given)


@pytest.mark.parametrize(
    ("family", "release", "tokens", "how"),
    [
        ("llada", "8b", 384, "reason: 128 of text, 256 open"),
        ("showo", "512", 1152, "imagine: 128 of text, 1,024 open, a picture's codes"),
        ("mmada", "8b", 1408, "understand: 128 of text, 1,024 of one picture, 256 open"),
        ("llada_v", "8b", 3313, "understand: 128 of text, 2,929 of one picture of 640 x 480 pixels, 256 open"),
        ("lavida", "8b", 1218, "understand: 128 of text, 834 of one picture of 640 x 480 pixels, 256 open"),
        ("diffusion_gemma", "26b-a4b", 384, "reason: 128 of text, 256 open"),
    ],
)
def test_memory_is_counted_for_the_rows_of_what_a_family_does(
    family: str, release: str, tokens: int, how: str, tmp_path: Path
) -> None:
    memory = by_name(described(tmp_path, family, release)["memory, estimated"])
    assert (memory["a row"].value, memory["a row"].explanation) == (f"{tokens:,} tokens", how)
    assert f"rows of about {tokens:,} tokens" in memory["each actor, besides"].explanation
    if "activations" in memory:
        assert memory["activations"].explanation.startswith(f"8 rows of about {tokens:,} tokens")


def test_length_and_pictures_of_a_row_are_those_that_were_asked_for(tmp_path: Path) -> None:
    row = by_name(described(tmp_path, "lavida", "8b", length=64, images=2)["memory, estimated"])["a row"]
    assert row.explanation == "understand: 128 of text, 1,668 of 2 pictures of 640 x 480 pixels, 64 open"
    row = by_name(described(tmp_path, "lavida", "8b", images=0)["memory, estimated"])["a row"]
    assert row.explanation == "reason: 128 of text, 256 open"
    row = by_name(described(tmp_path, "showo", "256", images=1)["memory, estimated"])["a row"]
    assert row.explanation == "understand: 128 of text, 256 of one picture, 256 open"
    with pytest.raises(ValueError, match=r"2 pictures were asked for, but LladaPolicy reads none"):
        described(tmp_path, "llada", "8b", images=2)


def test_the_parts_of_bert_by_hand(tmp_path: Path) -> None:
    rows = by_name(inspect_model(make_tiny("bert", tmp_path / "policy"))["parameters"])
    width, inner, layers = 64, 128, 2
    attention = layers * (4 * width * (width + 1) + 2 * width)
    assert rows["attention"].value == f"{attention / 1e6:.3f} M"
    assert rows["feed-forward"].value == f"{layers * (2 * width * inner + inner + width) / 1e6:.3f} M"


def test_self_conditioning_is_a_feed_forward_part(tmp_path: Path) -> None:
    rows = by_name(inspect_model(make_tiny("diffusion_gemma", tmp_path / "policy"))["parameters"])
    assert "head" not in rows  # it is the embedding
    assert rows["feed-forward"].value == f"{4 * 3 * 64 * 96 / 1e6:.3f} M"  # three layers and the self-conditioning


def test_the_command_prints_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "asset:tiny_policy"]) == 0
    printed = capsys.readouterr().out
    for title in ("model", "parameters", "vocabulary", "tasks", "memory, estimated"):
        assert re.search(rf"^{title}\s*$", printed, re.MULTILINE)
    assert run(["inspect", "asset:tiny_policy", "--length", "32", "--images", "2"]) == 0
    assert f"{128 + 2 * 16 + 32} tokens" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
