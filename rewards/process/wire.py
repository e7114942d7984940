"""Messages between a process and the workers it starts: a JSON header and raw blobs, so that no code crosses.

A frame is two big-endian 64-bit lengths, a JSON document, and the blobs one after another. Arrays, pictures and bytes
travel as blobs; the same object used twice (the pictures of a group's prompt) travels once.
"""

from __future__ import annotations

import importlib
import json
import math
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_LENGTHS = struct.Struct(">QQ")
_KIND = "$"
_CHUNK_BYTES = 1 << 20


class WireClosedError(ConnectionError):
    """The other side has gone."""


class WireUnreadableError(ImportError):
    """A whole message arrived, but what it holds needs a package that this interpreter lacks."""


class WireTimeoutError(TimeoutError):
    """The other side did not answer in time."""


@dataclass(kw_only=True, slots=True)
class _Packer:
    blobs: list[bytes] = field(default_factory=list)
    index: dict[int, int] = field(default_factory=dict)
    kept: list[object] = field(default_factory=list)
    pictures: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What each picture is sent as: one that is used twice is decoded once."""

    def add(self, source: object, blob: bytes) -> int:
        self.kept.append(source)  # An id is unique only while its object lives.
        self.index[id(source)] = len(self.blobs)
        self.blobs.append(blob)
        return self.index[id(source)]

    def pack(self, value: Any, path: str) -> Any:
        """Return the JSON form of ``value``; ``path`` names it in errors."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        numpy = sys.modules.get("numpy")  # Not every worker has it; a value can be numpy's only where it is loaded.
        if numpy is not None and isinstance(value, numpy.generic):
            return value.item()
        if isinstance(value, Mapping):
            return self._pack_mapping(value, path)
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self.pack(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return self._pack_blob(value, path)

    def _pack_mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        if all(isinstance(key, str) for key in value) and _KIND not in value:
            return {key: self.pack(item, f"{path}.{key}") for key, item in value.items()}
        return {_KIND: "map", "items": [[self.pack(k, path), self.pack(v, f"{path}.{k}")] for k, v in value.items()]}

    def _pack_blob(self, value: Any, path: str) -> Any:
        known = self.index.get(id(value))
        if isinstance(value, bytes | bytearray):
            return {_KIND: "bytes", "blob": self.add(value, bytes(value)) if known is None else known}
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
            blob = self.add(value, numpy.ascontiguousarray(value).tobytes()) if known is None else known
            return {_KIND: "array", "blob": blob, "dtype": value.dtype.str, "shape": list(value.shape)}
        if hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):
            return self._pack_picture(value)
        if hasattr(value, "kind") and hasattr(value, "reason"):  # a picture that was refused before
            return {_KIND: "refused", "kind": str(value.kind), "reason": str(value.reason)}
        raise TypeError(
            f"{path} is a {type(value).__name__}, which cannot be sent to a reward worker; "
            "use text, numbers, lists, dicts, bytes, numeric numpy arrays or PIL images"
        )

    def _pack_picture(self, value: Any) -> Any:
        """Return a picture as a blob; one that has no 8-bit pixels goes as its refusal."""
        from unigrpo.rewards.vision.pictures import RefusedPicture, portable

        if id(value) not in self.pictures:
            self.kept.append(value)
            picture = portable(value)
            if isinstance(picture, RefusedPicture):
                packed = {_KIND: "refused", "kind": picture.kind, "reason": picture.reason}
            else:
                blob = self.add(value, picture.tobytes())
                packed = {_KIND: "image", "blob": blob, "mode": picture.mode, "size": list(picture.size)}
            self.pictures[id(value)] = packed
        return self.pictures[id(value)]


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as one frame.

    Raises:
        TypeError: naming the entry that is not data.
    """
    packer = _Packer()
    header = {key: packer.pack(value, key) for key, value in message.items()}
    document = json.dumps({"message": header, "sizes": [len(blob) for blob in packer.blobs]}).encode()
    return b"".join([_LENGTHS.pack(len(document), sum(map(len, packer.blobs))), document, *packer.blobs])


def _unpack(value: Any, blobs: list[bytes], images: dict[int, Any]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, blobs, images) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: _unpack(item, blobs, images) for key, item in value.items()}
    if kind == "map":
        return {_unpack(key, blobs, images): _unpack(item, blobs, images) for key, item in value["items"]}
    if kind == "refused":
        from unigrpo.rewards.vision.pictures import RefusedPicture

        return RefusedPicture(value["kind"], value["reason"])
    blob = value["blob"]
    if kind == "bytes":
        return blobs[blob]
    if kind == "array":
        numpy = _imported("numpy", "an array")
        return numpy.frombuffer(blobs[blob], dtype=value["dtype"]).reshape(value["shape"]).copy()
    if blob not in images:
        image_module = _imported("PIL.Image", "a picture")
        images[blob] = image_module.frombytes(value["mode"], tuple(value["size"]), blobs[blob])
    return images[blob]


def _imported(module: str, sent: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = "pillow" if module.startswith("PIL") else module
        raise WireUnreadableError(
            f"{sent} was sent to an interpreter without {package} ({sys.executable}); add {package} to its requirements"
        ) from error


def decode(frame: bytes) -> dict[str, Any]:
    """Return the message of a whole frame; tuples come back as lists.

    Raises:
        WireUnreadableError: if it holds arrays or pictures and numpy or pillow is missing here.
    """
    start = _LENGTHS.size + _LENGTHS.unpack_from(frame)[0]
    parsed = json.loads(frame[_LENGTHS.size : start])
    blobs = []
    for size in parsed["sizes"]:
        blobs.append(frame[start : start + size])
        start += size
    unpacked: dict[str, Any] = _unpack(parsed["message"], blobs, {})
    return unpacked


def send(connection: socket.socket, message: Mapping[str, Any], timeout_s: float | None = None) -> None:
    """Send one message.

    Raises:
        WireClosedError: if the other side has gone.
        WireTimeoutError: if it does not read within ``timeout_s`` seconds.
    """
    send_frame(connection, encode(message), timeout_s)


def send_frame(connection: socket.socket, frame: bytes, timeout_s: float | None = None) -> None:
    """Send a message that :func:`encode` made; see :func:`send`."""
    connection.settimeout(timeout_s)
    try:
        connection.sendall(frame)
    except TimeoutError as error:
        raise WireTimeoutError(f"a message was not read within {timeout_s} s") from error
    except OSError as error:
        raise WireClosedError("the other side of a pipe has gone") from error


def receive(connection: socket.socket, timeout_s: float | None = None) -> dict[str, Any]:
    """Return the next message, or raise as :func:`receive_frame` and :func:`decode` do."""
    return decode(receive_frame(connection, timeout_s))


def receive_frame(connection: socket.socket, timeout_s: float | None = None) -> bytes:
    """Return the next message as it came.

    Raises:
        WireClosedError: if the other side has gone.
        WireTimeoutError: if it is not complete within ``timeout_s`` seconds.
    """
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    lengths = _receive_bytes(connection, _LENGTHS.size, deadline)
    return lengths + _receive_bytes(connection, sum(_LENGTHS.unpack(lengths)), deadline)


def _receive_bytes(connection: socket.socket, num_bytes: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise WireTimeoutError("no answer in time")
        connection.settimeout(None if math.isinf(remaining_s) else remaining_s)
        try:
            chunk = connection.recv(min(num_bytes - len(received), _CHUNK_BYTES))
        except TimeoutError as error:
            raise WireTimeoutError("no answer in time") from error
        except OSError as error:
            raise WireClosedError("the other side of a pipe has gone") from error
        if not chunk:
            raise WireClosedError("the other side of a pipe has gone")
        received += chunk
    return bytes(received)
