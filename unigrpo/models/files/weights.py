"""Safetensors into a module: one tensor at a time, memory-mapped, with names and shapes checked first."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from unigrpo.errors import UserError
from unigrpo.models.files.headers import describe, read_headers, require_reals, weight_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor


DIGEST_VALUES = 1024


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

    Raises:
        UserError: a value that is no number, or infinite, also after conversion; names tensor and file.
    """
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if name in names:
                    stored = file.get_tensor(name)
                    tensor = stored.to(device=device, dtype=dtype if stored.is_floating_point() else None)
                    if not is_finite(tensor):
                        what = f"values beyond {dtype}" if is_finite(stored) else "values that are NaN or infinite"
                        raise UserError(f"{path}: the tensor {name} has {what}; download it again, or mend it")
                    yield name, tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether every number is finite, in one pass without a copy: NaN comes through lowest and highest."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def weights_digest(module: nn.Module) -> str:
    """Return what tells a module's weights from others: sha256 over the start of each, rounded to bfloat16.

    It is the same whatever dtype the weights are stored and loaded in, and reads a thousand values of a tensor: any
    training changes them, in every layer that it trains.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            start = tensor.detach().flatten()[:DIGEST_VALUES].to(torch.bfloat16).cpu()
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(start.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _refuse_zeros(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a linear layer, a convolution or a table of tokens that is zero throughout: it was never filled.

    A table of one or two rows (token types) may be zero, as RoBERTa's is.

    Raises:
        UserError: naming them.
    """
    zero = [
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding)
        and (weight := state.get(f"{name}.weight")) is not None
        and (len(weight) > 2 or not isinstance(layer, nn.Embedding))
        and not weight.flatten()[:64].any()
        and not weight.any()  # takes far longer than what needs but a few values
    ]
    if zero:
        raise UserError(
            f"{source} has weights that are 0 throughout: {describe(zero)}; that checkpoint was not written whole, "
            "download it again"
        )


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
        UserError: pickled, damaged or unfitting weights, such as are no real numbers, NaN, infinite, or 0 throughout.
    """
    files = weight_files(folder)
    stored = read_headers(files)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    renamed, tied = match_names(module, shapes, str(folder), module_name)
    is_real = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    require_reals(stored, [name for name, own in renamed.items() if own in is_real])
    state = {renamed[name]: tensor for name, tensor in read_tensors(files, frozenset(renamed), dtype, device)}
    for source, names in tied:
        state.update(dict.fromkeys(names, state[source]))
    _refuse_zeros(module, state, str(folder))
    module.load_state_dict(state, assign=True)
    for source, names in tied:
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, module.get_parameter(source))
