"""Detectors in transformers' layout: loaded from a folder or the hub, fed with pictures that need no padding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unigrpo.files import sha256_of
from unigrpo.rewards.vision.detection import Detection
from unigrpo.rewards.vision.published_weights import HUB_PREFIX, require_reachable


class PretrainedDetector(ABC):
    """A model that is fed with batches of like pictures: what is padded together would depend on its neighbours."""

    _auto_class: str
    """Name of transformers' class to load with."""

    def __init__(self, model: str, *, device: str, min_score: float, batch_size: int) -> None:
        self._device, self._min_score, self._batch_size = device, min_score, batch_size
        self._model, self._processor = _loaded(model, self._auto_class, device)
        self.fingerprint = _fingerprint(model, self._model)

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return what each picture shows.

        Raises:
            ValueError: for labels that the model does not know, or cannot read apart.
        """
        rows_of: dict[Hashable, list[int]] = {}
        for row, (picture, asked) in enumerate(zip(pictures, labels, strict=True)):
            rows_of.setdefault((picture.size, self._key(tuple(asked))), []).append(row)
        found: list[list[Detection]] = [[] for _ in pictures]
        for rows in rows_of.values():
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                detected = self._detect([pictures[row] for row in batch], tuple(labels[batch[0]]))
                for row, objects in zip(batch, detected, strict=True):
                    found[row] = objects
        return found

    def _key(self, labels: tuple[str, ...]) -> Hashable:
        """Return what, beside the size, pictures of one batch have in common."""
        return labels

    @abstractmethod
    def _detect(self, pictures: list[Image.Image], labels: tuple[str, ...]) -> list[list[Detection]]:
        """Return what each picture of a batch shows; the labels are the first one's."""

    def _run(self, inputs: Any) -> Any:
        import torch

        with torch.no_grad():
            return self._model(**inputs.to(self._device))


def _loaded(model: str, auto_class: str, device: str) -> tuple[Any, Any]:
    """Return (model in evaluation mode, processor); weights come from safetensors only, and no remote code runs."""
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


def _fingerprint(model: str, loaded: Any) -> str:
    """Return what tells these weights from others: their hashes, or the hub's commit."""
    if model.startswith(HUB_PREFIX):
        return f"{model}@{getattr(loaded.config, '_commit_hash', None)}"
    return " ".join(sha256_of(file) for file in sorted(Path(model).expanduser().glob("*.safetensors")))
