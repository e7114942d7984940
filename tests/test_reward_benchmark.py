"""The page of the benchmark of the rewards says what its figures are of, and what is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "rewards.py"
NO_GPU = "There are no figures of a GPU, because none was at hand."


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    spec = importlib.util.spec_from_file_location("benchmark_of_rewards", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_a_machine_without_a_gpu_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, str(SCRIPT), "--only", "sudoku", "--num-items", "12", "--markdown", str(page)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    header, _, row = page.read_text().partition("| reward |")
    assert NO_GPU in header and "device cpu" in header
    assert "| sudoku | 12 |" in row


@pytest.mark.parametrize(("device", "has_gpu"), [("cuda", True), ("cpu", True), ("cuda:1", False)])
def test_the_page_speaks_of_no_missing_gpu_where_one_is_shown_or_was_used(
    script: ModuleType, device: str, has_gpu: bool
) -> None:
    assert NO_GPU not in script.markdown([], "python x", device, has_gpu=has_gpu)
    assert NO_GPU in script.markdown([], "python x", "cpu", has_gpu=False)
