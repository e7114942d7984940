"""Let torchvision be imported beside a CPU-only torch.

The published torchvision wheel is built for CUDA: its compiled part cannot load beside a CPU build of torch, and
`import torchvision` (hence open_clip, timm, peft, parts of transformers) raises `operator torchvision::nms does not
exist`. On the first import of torchvision this hook tries the compiled part and, only if that cannot load, declares
the schemas of the missing operators: every import then works, and calling such an operator still fails honestly.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []  # a torch Library undoes its declarations when collected


def _declare_missing_operators(spec: ModuleSpec) -> None:
    import torch

    compiled = [file for place in spec.submodule_search_locations or () for file in sorted(Path(place).glob("_C*.so"))]
    try:
        for library in compiled:
            torch.ops.load_library(str(library))
        if compiled:
            return
    except OSError:
        pass  # the compiled part does not fit this torch
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            declared.define(schema)
    _libraries.append(declared)


class _TorchvisionFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None:
            _declare_missing_operators(spec)
        return spec


def install() -> None:
    """Put the hook first in the import path, once; imports nothing heavy."""
    if "torchvision" in sys.modules or any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionFinder())
