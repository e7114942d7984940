"""Diversity: how unlike the other completions of its group a completion is. Meant to be logged, at weight 0."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from unigrpo.plugin import CodeReference
from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import completion_text
from unigrpo.rewards.vision.pictures import is_picture, log_refusals, made_tool, settled

SIDE = 32
"""Pictures are compared at 32 x 32 pixels: layout and colour, not texture."""
HASH_SIDE = 8
MAX_N = 4
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Embedder(Protocol):
    """Turns pictures into vectors."""

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Return [N, D], none of them zero."""


class Diversity:
    """The mean distance of a completion to each other one of its group; its mean is the group's pairwise distance.

    Pictures: ``pixels`` is the mean absolute difference at 32 x 32; ``hash`` the fraction of differing bits of a
    64-bit difference hash, which does not see colour; an embedder gives half of 1 minus the cosine. Texts: 1 minus the
    overlap (Dice) of their distinct n-grams of words and signs, averaged over n from 1 to 4.

    A group is what has the same prompt and the same pictures in a call; a call never splits one. Two groups of one
    prompt in one step count as one. A completion alone in its group, or the only one of its kind, gets None.

    Range: 0 (all alike) to 1.
    Needs: groups of two or more; any task. Text and pictures are compared with their own kind only.
    Source: own definitions; mean pairwise distance as in reports of collapse under picture rewards (arXiv 2512.21514).
    Cost: milliseconds a group; for texts it grows with the square of the group's size.
    Hacked by: noise and nonsense, which are as unlike as can be. Do not optimise it; watch it fall.
    Recipe:
        diversity: {use: "unigrpo.rewards.diversity:Diversity", weight: 0, arguments: {pictures: pixels}}
    """

    range = (0.0, 1.0)
    wanted_columns = ("images",)
    needs_whole_groups = True

    def __init__(
        self,
        *,
        pictures: Literal["pixels", "hash"] = "pixels",
        embedder: CodeReference | Embedder | None = None,
        embedder_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Choose the distance.

        Args:
            pictures: how pictures are compared without an embedder.
            embedder: ``"module:Class"`` or an object, see :class:`Embedder`.
            embedder_arguments: for the constructor of one that is named.

        Raises:
            ValueError: for another way to compare.
            PluginError: if there is no such embedder.
        """
        if pictures not in ("pixels", "hash"):
            raise ValueError(f"pictures {pictures!r}; give pixels or hash, or an embedder")
        self._embed: Any = None if embedder is None else made_tool(embedder, embedder_arguments)
        self._compare: Callable[[list[Image.Image]], np.ndarray] = {"pixels": pixel_distances, "hash": hash_distances}[
            pictures
        ]

    def __call__(
        self, *, prompts: Column, completions: Column, images: Column | None = None, log_metric: Any = None, **_: Any
    ) -> list[float | None]:
        """Return one value a completion: None for one that has no other to be compared with, 0 for a broken picture."""
        shown = {row: settled(one) for row, one in enumerate(completions) if is_picture(one)}
        if log_metric is not None:
            log_refusals(list(shown.values()), log_metric)
        groups: dict[Hashable, list[int]] = {}
        for row, (prompt, own) in enumerate(zip(prompts, images or [None] * len(prompts), strict=True)):
            key = (completion_text(prompt), tuple(_digest(picture) for picture in own or ()))
            groups.setdefault(key, []).append(row)
        values: list[float | None] = [None] * len(completions)
        for rows in groups.values():
            whole = {row: shown[row] for row in rows if row in shown}
            values_of = self._of_pictures({row: one for row, one in whole.items() if isinstance(one, Image.Image)})
            values_of |= {row: 0.0 for row, one in whole.items() if not isinstance(one, Image.Image)}
            texts = {row: completion_text(completions[row]) for row in rows if row not in shown}
            known = {row: text for row, text in texts.items() if text is not None}
            if len(known) >= 2:
                values_of |= _to_others(list(known), text_distances(list(known.values())))
            for row, value in values_of.items():
                values[row] = value
        return values

    def _of_pictures(self, pictures: dict[int, Image.Image]) -> dict[int, float]:
        if len(pictures) < 2:
            return {}
        if self._embed is None:
            return _to_others(list(pictures), self._compare(list(pictures.values())))
        vectors = np.asarray(self._embed(list(pictures.values())), dtype=np.float64)
        return _to_others(list(pictures), cosine_distances(vectors))


def _to_others(rows: list[int], distances: np.ndarray) -> dict[int, float]:
    """Return, by row, the mean of [n, n] distances to the n - 1 others."""
    means = (distances.sum(axis=1) - np.diag(distances)) / (len(rows) - 1)
    return {row: float(min(1.0, max(0.0, mean))) for row, mean in zip(rows, means, strict=True)}


def pixel_distances(pictures: list[Image.Image]) -> np.ndarray:
    """Return [n, n]: mean absolute difference, 0 to 1, of RGB pictures averaged down to 32 x 32."""
    size = (SIDE, SIDE)
    small = [np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float64).ravel() for picture in pictures]
    stacked = np.stack(small) / 255
    return np.stack([np.abs(stacked - one).mean(axis=1) for one in stacked])


def hash_distances(pictures: list[Image.Image]) -> np.ndarray:
    """Return [n, n]: fraction of 64 bits that differ, each whether a pixel of 9 x 8 is darker than its right one."""
    size = (HASH_SIDE + 1, HASH_SIDE)
    gray = [np.asarray(one.convert("L").resize(size, Image.Resampling.BOX)).astype(int) for one in pictures]
    bits = np.stack([(np.diff(one, axis=1) > 0).ravel() for one in gray])
    return np.stack([(bits != one).mean(axis=1) for one in bits])


def cosine_distances(vectors: np.ndarray) -> np.ndarray:
    """Return [n, n]: half of 1 minus the cosine of [n, D].

    Raises:
        ValueError: for a vector that is zero or not finite.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("an embedding is zero or not finite; the embedder must give each picture a direction")
    units = vectors / lengths
    return np.asarray((1 - units @ units.T) / 2)


def text_distances(texts: list[str]) -> np.ndarray:
    """Return [n, n]: 1 minus the Dice overlap of distinct n-grams, averaged over the n that either text has."""
    grams = [_ngrams(text) for text in texts]
    distances = np.zeros((len(texts), len(texts)))
    for row in range(len(texts)):
        for other in range(row):
            distances[row, other] = distances[other, row] = _distance(grams[row], grams[other])
    return distances


def _ngrams(text: str) -> list[set[tuple[str, ...]]]:
    """Return, for n from 1 to 4, the distinct n-grams."""
    tokens = _TOKEN.findall(text.casefold())
    return [set(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, MAX_N + 1)]


def _distance(first: list[set[tuple[str, ...]]], second: list[set[tuple[str, ...]]]) -> float:
    overlaps = [2 * len(a & b) / (len(a) + len(b)) for a, b in zip(first, second, strict=True) if a or b]
    return 1 - sum(overlaps) / len(overlaps) if overlaps else 0.0


def _digest(picture: Any) -> bytes:
    if isinstance(picture, Image.Image):
        return hashlib.blake2b(picture.tobytes(), digest_size=16, key=f"{picture.mode}{picture.size}".encode()).digest()
    return hashlib.blake2b(repr(picture).encode("utf-8", "surrogatepass"), digest_size=16).digest()
