"""The files of a checkpoint's weights and the headers of them, names and shapes: neither torch nor a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unigrpo.documents import parse_json
from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import optional_file
from unigrpo.models.files.folders import read_json

WEIGHTS = "model.safetensors"
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
"""How the released files begin: transformers' own name first, then those of other trainers."""
NUM_NAMED = 10
"""Tensors that an error names before it only counts."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own reader."""

REAL = ("F64", "F32", "F16", "BF16")
"""The format's names of the dtypes that a weight may have: others are codes of quantized weights, or no weights."""

CONVERT = (
    "import glob, torch; from safetensors.torch import save_file; save_file({name: tensor.clone().contiguous() "
    "for file in sorted(glob.glob('{pattern}')) for name, tensor in torch.load(file, weights_only=True).items()}, "
    "'model.safetensors')"
)
"""A line of Python that turns pickled weights into safetensors; weights_only refuses what is no tensor."""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, one or several shards.

    Raises:
        MissingFileError: none, or a shard that the index names is absent.
        UserError: only pickled weights, or an index that maps nothing.
    """
    for stem in STEMS:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if optional_file(single):
            return [single]
        if optional_file(index):
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
    absent = [path.name for path in files if not optional_file(path)]
    if absent:
        raise MissingFileError(f"{index} names {describe(absent)}, not in the folder; download them again")
    return files


def describe(names: Sequence[str]) -> str:
    """Return the first ten names and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


class StoredTensor(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """The format's name, such as BF16."""
    file: Path


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor; errors are those of `read_headers`."""
    return {name: tensor.shape for name, tensor in read_headers(files).items()}


def read_headers(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Return what the files' headers say of every tensor.

    Raises:
        UserError: a file that is cut off or no safetensors, or a tensor that two files hold.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        try:
            found = _header(path)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise UserError(
                f"{path} ({path.stat().st_size} bytes) is cut off or damaged: {error}; download it again"
            ) from error
        again = [name for name in found if name in tensors]
        if again:
            raise UserError(
                f"{path} holds {describe(again)}, which an earlier shard holds, too; leave only the files of one "
                "checkpoint in the folder"
            )
        tensors |= found
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a file's header holds beside its tensors; of a file that `read_headers` reads."""
    with path.open("rb") as file:
        length = min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)
        try:
            said = parse_json(file.read(length)).get("__metadata__") or {}
        except (ValueError, AttributeError):
            said = {}  # `read_headers` says what is wrong with the file
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def require_reals(tensors: Mapping[str, StoredTensor], names: Collection[str]) -> None:
    """Refuse weights that are stored as something else than real numbers.

    Raises:
        UserError: naming each with its dtype, and the file of the first.
    """
    wrong = [name for name in names if tensors[name].dtype not in REAL]
    if wrong:
        named = describe([f"{name} ({tensors[name].dtype})" for name in wrong])
        raise UserError(
            f"{tensors[wrong[0]].file} holds {named}; wanted weights of the dtypes {', '.join(REAL)}: convert or "
            "dequantize them, or give the checkpoint that was not quantized"
        )


def _header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file: eight bytes of length, so much JSON, then as many bytes as it says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise UserError(f"a header of {length:,} bytes")
        text = file.read(length)
    entries: dict[str, Any] = {name: entry for name, entry in parse_json(text).items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if path.stat().st_size != 8 + length + end:
        raise UserError(f"its header asks for {8 + length + end:,} bytes")
    return {
        name: StoredTensor(shape=tuple(entry["shape"]), dtype=str(entry["dtype"]), file=path)
        for name, entry in sorted(entries.items())
    }
