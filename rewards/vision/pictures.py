"""What image rewards share: is a completion a picture, and what stands in the place of one that was refused?

A refused picture that the policy made costs the policy the reward's minimum; one that came with the prompt says nothing
of the answer. How pictures become 8-bit RGB, and which are refused, is said in :mod:`unigrpo.pictures`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unigrpo.pictures import PictureError, RefusalKind, as_rgb
from unigrpo.plugin import PluginError, resolve

_PLAIN_MODES = ("L", "RGB", "RGBA")


@dataclass(frozen=True, slots=True)
class RefusedPicture:
    """Stands where a picture should be."""

    kind: RefusalKind
    reason: str


def is_picture(completion: Any) -> bool:
    """Return whether a completion is a picture, not text; arrays of three axes and refused pictures count."""
    if isinstance(completion, np.ndarray):
        return completion.ndim == 3
    return isinstance(completion, Image.Image | RefusedPicture)


def settled(picture: Any) -> Image.Image | RefusedPicture:
    """Return a picture's 8-bit RGB form, or the refusal in its place."""
    if isinstance(picture, RefusedPicture):
        return picture
    try:
        return as_rgb(picture)
    except PictureError as error:
        return RefusedPicture(error.kind, str(error))


def portable(picture: Any) -> Image.Image | RefusedPicture:
    """Return a picture that can cross to another process as mode, size and bytes; plain ones in memory as they are."""
    is_plain = type(picture) is Image.Image and picture.mode in _PLAIN_MODES and not picture.info
    return picture if is_plain else settled(picture)


def read_pictures(
    pictures: Sequence[Any], log_metric: Callable[[str, float], None] | None = None
) -> list[Image.Image | RefusedPicture]:
    """Return the 8-bit RGB form of each picture, or its refusal; the same object is read once.

    Args:
        pictures: as they come.
        log_metric: told of the fraction refused, and of each kind that occurs.
    """
    read = {key: settled(picture) for key, picture in {id(picture): picture for picture in pictures}.items()}
    settled_pictures = [read[id(picture)] for picture in pictures]
    if log_metric is not None:
        log_refusals(settled_pictures, log_metric)
    return settled_pictures


def pictures_by_row(
    completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None
) -> dict[int, Image.Image | RefusedPicture]:
    """Return by row what :func:`read_pictures` makes of the completions that are pictures."""
    rows = [row for row, completion in enumerate(completions) if is_picture(completion)]
    return dict(zip(rows, read_pictures([completions[row] for row in rows], log_metric), strict=True))


def picture_values(
    completions: Sequence[Any],
    score: Callable[[dict[int, Image.Image]], Iterable[float]],
    *,
    refused: float,
    asked: Sequence[bool] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> list[float | None]:
    """Return one value a completion; None for a text, and where nothing was asked.

    Args:
        completions: texts and pictures.
        score: called with the readable pictures by row, if there are any; it gives a value each, in that order.
        refused: value of a picture that cannot be read.
        asked: of each row, whether the reward applies; None is to all.
        log_metric: as of :func:`read_pictures`.
    """
    rows = [row for row, one in enumerate(completions) if is_picture(one) and (asked is None or asked[row])]
    read = dict(zip(rows, read_pictures([completions[row] for row in rows], log_metric), strict=True))
    whole = {row: picture for row, picture in read.items() if isinstance(picture, Image.Image)}
    found = dict.fromkeys(rows, refused) | dict(zip(whole, score(whole) if whole else (), strict=True))
    return [found.get(row) for row in range(len(completions))]


def made_tool(named: Any, arguments: Mapping[str, Any] | None) -> Any:
    """Return a detector, recogniser or embedder: an object as it is, a class that is named or given made first.

    Raises:
        PluginError: if there is none of that name, or it cannot be called.
    """
    made = resolve(named) if isinstance(named, str) else named
    if isinstance(made, type):
        made = made(**(arguments or {}))
    if not callable(made):
        raise PluginError(f"{named!r} is a {type(made).__name__}; name a class with __call__ as 'module:Class'")
    return made


def log_refusals(pictures: Sequence[Image.Image | RefusedPicture], log_metric: Callable[[str, float], None]) -> None:
    """Log the fraction of refused pictures as ``pictures/refused_fraction``, and that of each kind that occurs."""
    kinds = Counter(picture.kind for picture in pictures if isinstance(picture, RefusedPicture))
    if pictures:
        log_metric("pictures/refused_fraction", kinds.total() / len(pictures))
        for kind, count in sorted(kinds.items()):
            log_metric(f"pictures/refused_fraction/{kind}", count / len(pictures))
