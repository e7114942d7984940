"""Safetensors into a module: one tensor at a time, memory-mapped, with names and shapes checked first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from unigrpo.errors import MissingFileError, UserError
from unigrpo.models.files.folders import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

WEIGHTS = "model.safetensors"
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
"""How the released files begin: transformers' own name first, then those of other trainers."""
NUM_NAMED = 10
"""Tensors that an error names before it only counts."""


CONVERT = (
    "import glob, torch; from safetensors.torch import save_file; save_file({name: tensor.clone().contiguous() "
    "for file in sorted(glob.glob('{pattern}')) for name, tensor in torch.load(file, weights_only=True).items()}, "
    "'model.safetensors')"
)
"""A line of Python that turns pickled weights into safetensors; weights_only refuses what is no tensor."""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, one or several shards.

    Raises:
        FileNotFoundError: none, or a shard that the index names is absent.
        ValueError: only pickled weights, or an index that maps nothing.
    """
    for stem in STEMS:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            return _shards(index)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        line = CONVERT.replace("{pattern}", f"*{Path(pickled[0]).suffix}")
        raise UserError(
            f"{folder} has only pickled weights ({describe(pickled)}), and loading a pickle can run code: refused. On "
            f'a machine where you trust them, in that folder:  python -c "{line}"'
        )
    raise MissingFileError(
        f"{folder} has neither {WEIGHTS} nor {WEIGHTS}.index.json; wanted a checkpoint folder with safetensors"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map of tensor names to files; download it again")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names {describe(outside)}; wanted names of files beside it, without a folder")
    files = [index.parent / name for name in names]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise MissingFileError(f"{index} names {describe(absent)}, not in the folder; download them again")
    return files


def describe(names: Sequence[str]) -> str:
    """Return the first ten names and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor, from the files' headers.

    Raises:
        ValueError: a file that is cut off or no safetensors, or a tensor that two files hold.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                again = [name for name in file.keys() if name in shapes]
                if again:
                    raise UserError(
                        f"{path} holds {describe(again)}, which an earlier shard holds, too; leave only the files of "
                        "one checkpoint in the folder"
                    )
                shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
        except SafetensorError as error:
            raise UserError(
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
        ValueError: tensors that are missing, unexpected or misshapen.
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
        FileNotFoundError: no weights.
        ValueError: pickled, damaged or unfitting weights.
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
