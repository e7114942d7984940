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

        ``identity`` is the reward's use, arguments and version; ``wanted`` are its data columns (None: all).
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

    The order of a mapping's keys does not count; ``pictures`` are hashes by ``id`` of pictures that stay alive, so that
    a group's picture is read once.

    Raises:
        NoCanonicalFormError: for anything else.
    """
    kind, content = _canonical(value, {} if pictures is None else pictures)
    return hashlib.blake2b(kind + _LENGTH.pack(len(content)) + content, digest_size=KEY_BYTES).digest()


def _canonical(value: Any, pictures: dict[int, bytes]) -> tuple[bytes, bytes]:
    """Return a letter for a value's kind and its bytes; with their length between them, no two values look alike."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        return b"n", repr(value).encode()
    if isinstance(value, str):
        return b"s", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray):
        return b"b", bytes(value)
    if isinstance(value, Mapping):
        return b"m", b"".join(
            sorted(digest_of(key, pictures) + digest_of(item, pictures) for key, item in value.items())
        )
    if isinstance(value, Sequence):
        return b"l", b"".join(digest_of(item, pictures) for item in value)
    return b"p", _pixels(value, pictures)


def _pixels(value: Any, pictures: dict[int, bytes]) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return _keyed(f"{value.dtype.str}{value.shape}", np.ascontiguousarray(value).tobytes())
    if not isinstance(value, Image.Image | RefusedPicture):
        raise NoCanonicalFormError(f"a {type(value).__name__} has no canonical form")
    if id(value) not in pictures:
        picture = portable(value)
        if isinstance(picture, RefusedPicture):
            pictures[id(value)] = _keyed(picture.kind, picture.reason.encode("utf-8", "surrogatepass"))
        else:
            pictures[id(value)] = _keyed(f"{picture.mode}{picture.size}", picture.tobytes())
    return pictures[id(value)]


def _keyed(about: str, content: bytes) -> bytes:
    return hashlib.blake2b(content, key=about.encode()[:64]).digest()
