"""Which items of a step are equal: a hash of what a reward is asked, so that nothing is scored twice."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unigrpo.rewards.runtime.columns import data_columns
from unigrpo.rewards.vision.pictures import RefusedPicture, portable
from unigrpo.types import Prompt, Rollout

KEY_BYTES = 16
_LENGTH = struct.Struct(">Q")


class NoCanonicalFormError(TypeError):
    """A column holds something that is not data, so that two items cannot be told equal."""


class StepDigests:
    """Hashes of the rollouts of a step, each made once however many rewards ask.

    Pictures count by the pixels that a worker gets, in which palette, transparency and a camera's rotation are settled.
    """

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        """Remember the rollouts; nothing is hashed yet."""
        self._rollouts = rollouts
        self._completions: dict[int, bytes] = {}
        self._pictures: dict[int, bytes] = {}

    def keys(
        self, rows: Sequence[int], *, identity: bytes, wanted: frozenset[str] | None, with_completion_ids: bool
    ) -> dict[int, bytes | None]:
        """Return the key of each row for one reward; None where a column has no canonical form.

        Args:
            rows: of the step.
            identity: of the reward: use, arguments, version.
            wanted: the data columns it is called with; None is all.
            with_completion_ids: whether it is called with token ids.
        """
        prompts: dict[int, bytes | None] = {}
        keys: dict[int, bytes | None] = {}
        for row in rows:
            rollout = self._rollouts[row]
            if id(rollout.prompt) not in prompts:
                prompts[id(rollout.prompt)] = self._prompt(rollout.prompt, wanted)
            prompt = prompts[id(rollout.prompt)]
            if prompt is None:
                keys[row] = None
                continue
            digest = hashlib.blake2b(identity + prompt + self._completion(row), digest_size=KEY_BYTES)
            if with_completion_ids:
                digest.update(rollout.token_ids[rollout.is_completion].tobytes())
            keys[row] = digest.digest()
        return keys

    def _completion(self, row: int) -> bytes:
        if row not in self._completions:
            rollout = self._rollouts[row]
            self._completions[row] = digest_of(rollout.text or "" if rollout.image is None else rollout.image)
        return self._completions[row]

    def _prompt(self, prompt: Prompt, wanted: frozenset[str] | None) -> bytes | None:
        columns = {name: values[0] for name, values in data_columns([prompt], wanted).items()}
        try:
            return digest_of({"prompts": prompt.text, **columns}, self._pictures)
        except NoCanonicalFormError:
            return None


def digest_of(value: Any, pictures: dict[int, bytes] | None = None) -> bytes:
    """Return the hash of data: texts, numbers, None, bytes, lists, mappings, numeric arrays, PIL images.

    Args:
        value: the data; the order of a mapping's keys does not count.
        pictures: hashes by ``id`` of pictures that stay alive, so that a group's picture is read once.

    Raises:
        NoCanonicalFormError: for anything else.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    _feed(digest, value, {} if pictures is None else pictures)
    return digest.digest()


def _feed(digest: Any, value: Any, pictures: dict[int, bytes]) -> None:
    """Add a value as a letter for its kind, its length and its bytes, so that no two values look alike."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        _add(digest, b"n", repr(value).encode())
    elif isinstance(value, str):
        _add(digest, b"s", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray):
        _add(digest, b"b", bytes(value))
    elif isinstance(value, Mapping):
        parts = sorted((digest_of(key, pictures), digest_of(item, pictures)) for key, item in value.items())
        _add(digest, b"m", b"".join(key + item for key, item in parts))
    elif isinstance(value, Sequence):
        _add(digest, b"l", b"".join(digest_of(item, pictures) for item in value))
    else:
        _add(digest, b"p", _pixels(value, pictures))


def _add(digest: Any, kind: bytes, content: bytes) -> None:
    digest.update(kind + _LENGTH.pack(len(content)))
    digest.update(content)


def _pixels(value: Any, pictures: dict[int, bytes]) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        about = f"{value.dtype.str}{value.shape}"
        return hashlib.blake2b(np.ascontiguousarray(value).tobytes(), key=about.encode()[:64]).digest()
    if isinstance(value, Image.Image | RefusedPicture):
        if id(value) not in pictures:
            pictures[id(value)] = _picture(portable(value))
        return pictures[id(value)]
    raise NoCanonicalFormError(f"a {type(value).__name__} has no canonical form")


def _picture(picture: Image.Image | RefusedPicture) -> bytes:
    if isinstance(picture, RefusedPicture):
        return hashlib.blake2b(picture.reason.encode("utf-8", "surrogatepass"), key=picture.kind.encode()).digest()
    about = f"{picture.mode}{picture.size}"
    return hashlib.blake2b(picture.tobytes(), key=about.encode()[:64]).digest()
