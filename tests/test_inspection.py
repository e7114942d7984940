"""What is told of a checkpoint is counted from what it holds, without reading a weight."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from unigrpo.arithmetic import Row
from unigrpo.cli.app import run
from unigrpo.inspection import inspect_model
from unigrpo.models import load_policy
from unigrpo.models.loading import policy_shapes
from unigrpo.testing.make_tiny import make_tiny
from unigrpo.testing.tiny_families import TINY_FAMILIES


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


@pytest.mark.parametrize("family", TINY_FAMILIES)
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
    config = json.loads((folder / "config.json").read_text()) | TINY_FAMILIES["llada"].releases["8b"]
    (folder / "config.json").write_text(json.dumps(config))
    found = inspect_model(folder)
    count = sum(math.prod(shape) for shape in policy_shapes(config).values())
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
    assert {row.name for row in found["memory, estimated"]} == {"weights", "each actor, besides"}


def test_the_command_prints_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "asset:tiny_policy"]) == 0
    printed = capsys.readouterr().out
    for title in ("model", "parameters", "vocabulary", "tasks", "memory, estimated"):
        assert re.search(rf"^{title}\s*$", printed, re.MULTILINE)
    assert run(["inspect", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
