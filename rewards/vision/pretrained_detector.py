"""Detectors in transformers' layout: loaded from a folder or the hub, fed with pictures that need no padding."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unigrpo.files import sha256_of
from unigrpo.rewards.vision.published_weights import HUB_PREFIX, require_reachable


def load_pretrained(model: str, auto_class: str, device: str) -> tuple[Any, Any]:
    """Return (model in evaluation mode, processor); weights come from safetensors only, and no remote code runs.

    Args:
        model: a folder with config.json, model.safetensors and the processor's files, or ``hf-hub:OWNER/NAME``.
        auto_class: name of transformers' class to load with.
        device: cpu, cuda or cuda:N.

    Raises:
        FileNotFoundError: if the files are neither here nor to be had.
    """
    import transformers

    if model.startswith(HUB_PREFIX):
        place = model.removeprefix(HUB_PREFIX)
        require_reachable(f"the detector {model}", place, ["config.json"])
    else:
        place = str(_checked_folder(model))
    processor_class = "AutoImageProcessor" if "Segmentation" in auto_class else "AutoProcessor"
    try:
        loaded = getattr(transformers, auto_class).from_pretrained(place, use_safetensors=True)
        processor = getattr(transformers, processor_class).from_pretrained(place)
    except ImportError as error:
        raise ImportError(f"{auto_class} needs scipy: pip install 'unigrpo[compositional]' ({error})") from error
    except OSError as error:
        raise FileNotFoundError(
            f"the detector {model!r} did not load ({str(error).splitlines()[0]}); without network, download it where "
            "there is one and give its folder"
        ) from error
    loaded.requires_grad_(False)
    return loaded.to(device).eval(), processor


def _checked_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if any(folder.glob("*.safetensors")) else ["model.safetensors"]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no folder of a detector: it holds no {' and no '.join(missing)}; give one in transformers' "
            f"layout, or {HUB_PREFIX}OWNER/NAME"
        )
    return folder


def fingerprint(model: str, loaded: Any) -> str:
    """Return what tells these weights from others: their hashes, or the hub's commit."""
    if model.startswith(HUB_PREFIX):
        return f"{model}@{getattr(loaded.config, '_commit_hash', None)}"
    return " ".join(sha256_of(file) for file in sorted(Path(model).expanduser().glob("*.safetensors")))


def batches(keys: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Return the rows in batches of one key each: what is padded together would depend on its neighbours."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    for rows in rows_of.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
