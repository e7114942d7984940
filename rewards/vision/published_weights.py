"""Published weights of scorers: found, checked against their sha256, and opened without running what they may hold.

A pickled file (``.pt``, ``.pth``, ``.bin``) is read once, as plain tensors only, and kept as safetensors in the cache
folder: ``$XDG_CACHE_HOME/unigrpo/weights``, by default under ``~/.cache``. Nothing else of it is ever executed. Beside
what is kept lies its own sha256, written last; a copy that does not match it, or has none, is made anew.
"""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from unigrpo.files import replacing, sha256_of, write_atomically

_LOGGER = logging.getLogger(__name__)

HUB_TIMEOUT_S = 10.0
PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
HUB_PREFIX = "hf-hub:"
_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training scripts put the tensors."""
_SHA256_LENGTH = 64


class WeightsError(ValueError):
    """A file of weights that is not what it should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFile:
    """A file of weights as its authors publish it."""

    hub_id: str
    file: str
    num_bytes: int | None = None
    sha256: str | None = None
    """None where none is known: then the file is taken as it comes, unless the caller gives one."""


PUBLISHED: Mapping[str, PublishedFile] = {
    "image_reward": PublishedFile(
        hub_id="THUDM/ImageReward",
        file="ImageReward.pt",
        num_bytes=1_786_880_927,
        sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
    ),
    "aesthetics": PublishedFile(
        hub_id="camenduru/improved-aesthetic-predictor",
        file="sac+logos+ava1-l14-linearMSE.pth",
        num_bytes=3_714_759,
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "pick_score": PublishedFile(hub_id="yuvalkirstain/PickScore_v1", file="model.safetensors"),
    "hps_v2": PublishedFile(hub_id="xswu/HPSv2", file="HPS_v2_compressed.pt"),
    "hps_v2.1": PublishedFile(hub_id="xswu/HPSv2", file="HPS_v2.1_compressed.pt"),
}


def open_published(name_or_path: str | Path) -> Path:
    """Return a safetensors file with the weights.

    Args:
        name_or_path: a file here; a name in :data:`PUBLISHED`; or ``hf-hub:OWNER/NAME/FILE``. With ``@SHA256`` behind
            it, that hash is wanted.

    Raises:
        FileNotFoundError: if the file is neither here nor in the hub's cache nor to be had.
        WeightsError: for a wrong size or hash, pickled code, a damaged file, or one without tensors.
    """
    name, _, wanted_hash = str(name_or_path).rpartition("@")
    if not name or len(wanted_hash) != _SHA256_LENGTH:
        name, wanted_hash = str(name_or_path), ""
    path, published = _found(name)
    wanted = wanted_hash.lower() or (published.sha256 if published else None)
    if published and published.num_bytes is not None:
        _check_size(path, published.num_bytes)
    is_pickled = path.suffix in PICKLED_SUFFIXES
    if wanted is None and not is_pickled:
        return _checked_safetensors(path)
    sha256 = sha256_of(path)
    if wanted is None:
        _LOGGER.info("%s has no published hash; pin what you got: %s@%s", name, name, sha256)
    elif sha256 != wanted:
        raise WeightsError(
            f"{path} has sha256 {sha256}; wanted {wanted}: delete it and download it again, or, if you mean this file, "
            "name it by its path"
        )
    return _converted(path, sha256) if is_pickled else _checked_safetensors(path)


def cache_folder() -> Path:
    """Return where converted weights are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "unigrpo" / "weights"


def require_reachable(name: str, repository: str, files: Sequence[str]) -> None:
    """Fail within seconds where neither the cache nor the hub has a repository; the hub's client keeps trying.

    Args:
        name: what is to be loaded, for the message.
        repository: ``OWNER/NAME`` on the hub.
        files: one of them in the cache is enough.

    Raises:
        FileNotFoundError: if it is not to be had.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        if constants.is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        with urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # the hub answers; whether it has the repository, its client finds out at once
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of {name} are not in the cache and {constants.ENDPOINT} did not answer ({error}); "
            "download them where there is network, or give the path of a local copy"
        ) from error


def _found(name: str) -> tuple[Path, PublishedFile | None]:
    """Return the file that a name means, and what is known of it."""
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return _downloaded(published.hub_id, published.file), published
    if name.startswith(HUB_PREFIX):
        owner, _, rest = name.removeprefix(HUB_PREFIX).partition("/")
        repository, _, file = rest.partition("/")
        if not (owner and repository and file):
            raise ValueError(f"{name!r} names no file on the hub; give {HUB_PREFIX}OWNER/NAME/FILE")
        known = [entry for entry in PUBLISHED.values() if (entry.hub_id, entry.file) == (f"{owner}/{repository}", file)]
        return _downloaded(f"{owner}/{repository}", file), known[0] if known else None
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no file of weights at {path}; give a path, {HUB_PREFIX}OWNER/NAME/FILE or one of {', '.join(PUBLISHED)}"
        )
    return path, None


def _downloaded(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    require_reachable(f"{repository}/{file}", repository, [file])
    try:
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{file} of {repository} could not be downloaded ({error}); give the path of a local copy"
        ) from error


def _check_size(path: Path, wanted: int) -> None:
    given = path.stat().st_size
    if given != wanted:
        raise WeightsError(
            f"{path} has {given:,} bytes; the published file has {wanted:,}: the download broke off, or it is a page "
            "or a pointer in its place. Delete it and download it again"
        )


def _checked_safetensors(path: Path) -> Path:
    """Return the path of a whole safetensors file; reads the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return path
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file, or a damaged one; download it again") from error


def _converted(path: Path, sha256: str) -> Path:
    """Return the safetensors form of a pickled file whose hash is known, made once for each content."""
    kept = cache_folder() / f"{path.stem}-{sha256[:16]}.safetensors"
    record = kept.with_name(f"{kept.name}.sha256")
    if kept.is_file():
        if record.is_file() and record.read_bytes().strip() == sha256_of(kept).encode():
            return kept
        _LOGGER.warning("%s is not as it was written, or its hash is not kept: converted again from %s", kept, path)
    from safetensors.torch import save_file

    tensors = dict(_tensors_of(_unpickled(path)))
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name; wanted a state dict")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as partial:
        save_file(tensors, partial)
        kept_sha256 = sha256_of(partial)
    write_atomically(record, f"{kept_sha256}\n")
    _LOGGER.info("%s is kept as %s", path, kept)
    return kept


def _unpickled(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and opening that can run code: refused. If you trust whoever made it, "
            'convert it yourself and give the new file: python -c "import torch, safetensors.torch as s; '
            f"d = torch.load('{path}', map_location='cpu', weights_only=False); d = d.get('state_dict', d); "
            f"s.save_file({{k: v.contiguous().clone() for k, v in d.items()}}, '{path.with_suffix('.safetensors')}')\""
            f" ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or no file of weights ({error}); download it again") from error


def _tensors_of(loaded: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors by name; each owns its memory, as safetensors want it."""
    import torch

    if not isinstance(loaded, Mapping):
        return
    for wrapper in _WRAPPERS:
        if isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            yield name, value.detach().clone(memory_format=torch.contiguous_format)
