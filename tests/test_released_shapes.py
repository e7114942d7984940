"""The benchmark of released shapes runs from end to end where there is no GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parent / "benchmarks" / "released_shapes.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("released_shapes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", ["llada", "sdar", "llada2", "lavida"])
def test_a_row_has_times_and_peaks_of_each_part(shape: str, script: ModuleType, tmp_path: Path) -> None:
    arguments = Namespace(device="cpu", dtype="float32", layers=2, width=64, rows=4, length=16, micro_batch_rows=2)
    folder = script.write_checkpoint(shape, tmp_path, arguments)
    row = script.measure_shape(shape, folder, arguments)
    assert row["tokens_per_s"] == pytest.approx(4 * 16 / row["generation_s"])
    assert row["update_s"] > 0 and 0 < row["num_scored"] <= 4 * 16
    assert row["generation_peak"] > row["num_parameters"] * 4  # the last shape holds more than Python does
    assert len(script.cells(row)) == len(script.TITLES)


def test_the_command_writes_json_and_a_table_and_goes_on_after_a_failure(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(SCRIPT), "showo", "llada", "--device", "cpu", "--layers", "1", "--width", "32"]
    command += ["--rows", "2", "--length", "8", "--keep", str(tmp_path / "keep")]
    command += ["--json", str(tmp_path / "rows.json"), "--markdown", str(tmp_path / "rows.md")]
    monkeypatch.setattr(sys, "argv", command)
    assert script.main() == 1
    report = json.loads((tmp_path / "rows.json").read_text())
    assert "writes no text" in report["rows"][0]["error"]
    assert report["rows"][1]["shape"] == "llada"
    assert torch.__version__ in report["hardware"]
    lines = (tmp_path / "rows.md").read_text().splitlines()
    assert "bfloat16, 2 rows of 8 open tokens" in lines[0]
    assert {line.count("|") for line in lines[2:]} == {9}
    assert (tmp_path / "keep" / "llada-tiny-layers1-width32-bfloat16" / "model.safetensors").is_file()
