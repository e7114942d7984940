"""The body of CLIP rewards: two towers whose vectors are made once and shared by every reward that needs them.

Rewards of one process that name the same model get the same body: :func:`shared_body` hands out one object a model and
device, alive as long as a reward holds it. A picture's vector is kept by its pixels and a prompt's by its words,
so that a step's pictures pass the image tower once however many rewards look at them, and a group's prompt the text
tower once.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from unigrpo.lru import LruCache
from unigrpo.rewards.text.answers import completion_text
from unigrpo.rewards.vision.batches import batch_size_on, in_whole_batches
from unigrpo.rewards.vision.pictures import RefusedPicture, is_picture, read_pictures

if TYPE_CHECKING:
    from torch import Tensor

NUM_KEPT = 4096
"""Vectors of each kind: 32 MB at 1024 numbers."""


class Towers(Protocol):
    """A two-tower model of some library, in evaluation mode."""

    context_length: int
    """Tokens of a text that are read, start and end included."""
    logit_scale: float
    """Factor by which training multiplied the cosine."""

    def num_tokens(self, text: str) -> int:
        """Return how many tokens a text has, uncut, start and end included."""

    def text_input(self, text: str) -> Tensor:
        """Return [L] int64, cut to the context."""

    def picture_input(self, picture: Image.Image) -> Tensor:
        """Return [3, H, W] float32 of an RGB picture."""

    def embed_texts(self, batch: Tensor) -> Tensor:
        """Return [N, D] of [N, L]."""

    def embed_pictures(self, batch: Tensor) -> Tensor:
        """Return [N, D] of [N, 3, H, W]."""


class ClipBody:
    """Unit vectors of texts and pictures, each made once while kept."""

    def __init__(self, towers: Towers, device: str) -> None:
        """Wrap towers that live on ``device``."""
        self.towers = towers
        self._device = device
        self._kept = {kind: LruCache[Hashable, np.ndarray](NUM_KEPT) for kind in ("texts", "pictures")}
        self.num_encoded: Counter[str] = Counter()
        """How many texts and pictures went through the model so far."""
        self._lock = threading.RLock()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return [N, D] float64 unit vectors of at least one text."""
        return self._vectors("texts", texts, texts, self.towers.text_input, self.towers.embed_texts)

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Return [N, D] float64 unit vectors of at least one RGB picture."""
        by_object = {id(picture): _pixel_key(picture) for picture in pictures}
        keys = [by_object[id(picture)] for picture in pictures]
        return self._vectors("pictures", keys, pictures, self.towers.picture_input, self.towers.embed_pictures)

    def cosines(self, texts: Sequence[str], pictures: Sequence[Image.Image | RefusedPicture]) -> list[float | None]:
        """Return the cosine of each text with its picture; None where the text is empty or the picture refused."""
        pairs = {
            row: (text, picture)
            for row, (text, picture) in enumerate(zip(texts, pictures, strict=True))
            if text and isinstance(picture, Image.Image)
        }
        values: list[float | None] = [None] * len(texts)
        if pairs:
            words = self.encode_texts([text for text, _ in pairs.values()])
            looks = self.encode_pictures([picture for _, picture in pairs.values()])
            for row, cosine in zip(pairs, np.clip((words * looks).sum(axis=-1), -1.0, 1.0), strict=True):
                values[row] = float(cosine)
        return values

    def truncated(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct texts that are longer than the model reads."""
        return [text for text in dict.fromkeys(texts) if self.towers.num_tokens(text) > self.towers.context_length]

    def _vectors(
        self,
        kind: str,
        keys: Sequence[Hashable],
        objects: Sequence[Any],
        prepare: Callable[[Any], Tensor],
        embed: Callable[[Tensor], Tensor],
    ) -> np.ndarray:
        """Return [len(keys), D], making the vectors of those objects that are not kept."""
        with self._lock:
            keyed = dict(zip(keys, objects, strict=True))
            found = self._kept[kind].get(keyed)
            missing = [key for key in keyed if key not in found]
            if missing:
                made = self._embedded([prepare(keyed[key]) for key in missing], embed)
                found |= dict(zip(missing, made, strict=True))
                self.num_encoded[kind] += len(missing)
            self._kept[kind].put({key: found[key] for key in keyed})
            return np.stack([found[key] for key in keys])

    def _embedded(self, inputs: list[Tensor], embed: Callable[[Tensor], Tensor]) -> np.ndarray:
        """Return [N, D] unit vectors of inputs, which go through the model in batches of one size."""
        size = batch_size_on(self._device)
        made = in_whole_batches(inputs, size, lambda batch: embed(batch.to(self._device))).numpy()
        return np.asarray(made / np.linalg.norm(made, axis=-1, keepdims=True))


_BODIES: WeakValueDictionary[Hashable, ClipBody] = WeakValueDictionary()
_BODIES_LOCK = threading.Lock()


def shared_body(key: Hashable, device: str, make: Callable[[], Towers]) -> ClipBody:
    """Return this process's body of a model, made if no reward holds one yet.

    Args:
        key: what names the model: the same key is the same body.
        device: cpu, cuda or cuda:N; bodies on other devices are others.
        make: loads the towers onto the device.
    """
    with _BODIES_LOCK:
        body = _BODIES.get((key, device))
        if body is None:
            body = _BODIES[(key, device)] = ClipBody(make(), device)
        return body


def _pixel_key(picture: Image.Image) -> tuple[tuple[int, int], bytes]:
    return picture.size, hashlib.sha256(picture.tobytes()).digest()


class PromptAlignment:
    """A reward that is ``_scale`` times the cosine of a generated picture and its prompt, 0 where it is negative."""

    name: str
    """First part of the metric ``NAME/truncated_fraction``, of the prompts that had to be cut."""
    wanted_columns = ()
    _body: ClipBody
    _scale: float

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """Return one value a completion; None for text, 0 for a picture that cannot be read or has an empty prompt."""
        texts = [completion_text(prompt) for prompt in prompts]
        rows = [row for row, text in enumerate(texts) if text is not None and is_picture(completions[row])]
        asked = [(texts[row] or "").strip() for row in rows]
        pictures = read_pictures([completions[row] for row in rows], log_metric)
        if any(asked) and log_metric is not None:
            distinct = {text for text in asked if text}
            log_metric(f"{self.name}/truncated_fraction", len(self._body.truncated(list(distinct))) / len(distinct))
        values: list[float | None] = [None] * len(completions)
        for row, cosine in zip(rows, self._body.cosines(asked, pictures), strict=True):
            values[row] = 0.0 if cosine is None else self._scale * max(0.0, cosine)
        return values
