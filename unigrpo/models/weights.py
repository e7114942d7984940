"""Safetensors into a module: one tensor at a time, memory-mapped, with names and shapes checked first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from unigrpo.models.folders import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NUM_NAMED = 10
"""Tensors that an error names before it only counts."""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, one or several shards.

    Raises:
        FileNotFoundError: none, or a shard that the index names is absent.
        ValueError: only pickled weights, or an index that maps nothing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map of tensor names to files; download it again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise FileNotFoundError(
                f"{folder / INDEX} names {describe(absent)}, not in the folder; download them again"
            )
        return files
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder} has only pickled weights ({describe(pickled)}), and loading a pickle can run code: refused. On "
            "a machine where you trust them: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            f"'{WEIGHTS}')"
        )
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}; wanted a checkpoint folder with safetensors")


def describe(names: Sequence[str]) -> str:
    """Return the first ten names and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor, from the files' headers.

    Raises:
        ValueError: a file that is cut off or no safetensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
        except SafetensorError as error:
            raise ValueError(
                f"{path} ({path.stat().st_size} bytes) is cut off or damaged: {error}; download it again"
            ) from error
    return shapes


def compare_shapes(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Compare tensors that came with those of a module.

    Args:
        wanted: of the module.
        found: of the files, or delivered.
        source: for the message.

    Raises:
        ValueError: naming the missing, unexpected and misshapen tensors, ten of each.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {list(found[name])} (wanted {list(shape)})"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {what}: {describe(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"the tensors of {source} do not fit; {'; '.join(problems)}")


def read_tensors(
    files: Sequence[Path], names: frozenset[str], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors one by one; where dtype and device fit they are views of the mapped file, not copies."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if name in names:
                    yield name, file.get_tensor(name).to(device=device, dtype=dtype)


def fill(module: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Give a module on the meta device the weights of a folder.

    Raises:
        FileNotFoundError: no weights.
        ValueError: pickled, damaged or unfitting weights.
    """
    files = weight_files(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    compare_shapes(wanted, read_shapes(files), str(folder))
    state = dict(read_tensors(files, frozenset(wanted), dtype, device))
    module.load_state_dict(state, assign=True)
