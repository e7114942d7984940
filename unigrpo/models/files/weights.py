"""Safetensors into a module: one tensor at a time, memory-mapped, with names and shapes checked first."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unigrpo.errors import UserError
from unigrpo.models.files.headers import describe, read_shapes, weight_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn


_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: where the system does not take it, which safetensors tells in an error of its own kind.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def compare_shapes(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Compare the tensors of a module with those that were found in files or delivered; ``source`` is for the message.

    Raises:
        UserError: naming the missing, unexpected and misshapen tensors, ten of each.
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
        raise UserError(f"the tensors of {source} do not fit; {'; '.join(problems)}")


def read_tensors(
    files: Sequence[Path], names: frozenset[str], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors one by one; where dtype and device fit they are views of the mapped file, not copies.

    A shard is unmapped before the next is opened unless views of it were given out, so that a load that converts
    never holds more than its own result and one shard. Whole numbers keep their dtype.
    """
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if name in names:
                    tensor = file.get_tensor(name)
                    yield name, tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def tied_names(module: nn.Module) -> list[list[str]]:
    """Return the groups of names in a module's state that are one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def match_names(
    module: nn.Module,
    stored: Mapping[str, tuple[int, ...]],
    source: str,
    module_name: Callable[[str], str | None] = str,
) -> tuple[dict[str, str], list[tuple[str, list[str]]]]:
    """Return the module's name of each stored tensor, and for each tied parameter the name that is stored and all.

    Raises:
        UserError: tensors that are missing, unexpected or misshapen.
    """
    renamed = {name: own for name in stored if (own := module_name(name)) is not None}
    found = {own: stored[name] for name, own in renamed.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tied = [(next((name for name in names if name in found), names[0]), names) for names in tied_names(module)]
    left_out = {name for kept, names in tied for name in names if name != kept and name not in found}
    compare_shapes({name: shape for name, shape in wanted.items() if name not in left_out}, found, source)
    return renamed, tied


def fill(
    module: nn.Module,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    module_name: Callable[[str], str | None] = str,
) -> None:
    """Give a module on the meta device the weights of a folder; of tied ones a file may hold any.

    Args:
        module: its parameters are replaced.
        folder: of the checkpoint.
        dtype: of the module's weights.
        device: of the module's weights.
        module_name: from a tensor's name in the files to the module's; None leaves the tensor out.

    Raises:
        MissingFileError: no weights.
        UserError: pickled, damaged or unfitting weights.
    """
    files = weight_files(folder)
    renamed, tied = match_names(module, read_shapes(files), str(folder), module_name)
    state = {renamed[name]: tensor for name, tensor in read_tensors(files, frozenset(renamed), dtype, device)}
    for source, names in tied:
        state.update(dict.fromkeys(names, state[source]))
    module.load_state_dict(state, assign=True)
    for source, names in tied:
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, module.get_parameter(source))
