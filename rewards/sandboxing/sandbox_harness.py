"""What runs inside a sandbox, as ``python -I -S``, on the standard library alone; the outside imports the data format.

Two roles. The *candidate* loads a program of a policy and answers calls: it is hostile, and all that leaves it is data
(JSON with tags), never an object. The *judge* holds the tests; it runs their lines, in which the program's names are
stand-ins that call the candidate over a socket. Each has a sandbox of its own, so the program cannot see, trace or end
the judge, and no verdict ever passes through the program's process. A program that writes to its socket itself only
gives an answer that it could as well return.

Compiled code is run by calling a function made of it; this is the one place of the package where a policy's text runs.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

MAX_MESSAGE = 8 * 2**20
"""Bytes of one message; a longer one ends the conversation."""
_CHUNK = 2**16
_MAX_INT_BITS = 8192
_MUTABLE = (list, dict, set, bytearray)
_CONTAINERS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class GoneError(BaseException):
    """The other side hung, died or talks nonsense. Not an Exception: a test's own ``except`` must not swallow it."""


class UnshippableError(Exception):
    """A test passes something of its own to the program that is not data, such as a function."""


class RaisedError(Exception):
    """The program raised something that is not a built-in exception."""


class Trap:
    """Holds whatever the code in a ``with`` block raises, SystemExit and its like included."""

    error: BaseException | None = None

    def __enter__(self) -> Trap:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return True


class Channel:
    """Messages (one JSON object a line) over two file descriptors, with deadlines of ``time.monotonic``."""

    def __init__(self, reading: int, writing: int | None = None) -> None:
        self._reading, self._writing = reading, reading if writing is None else writing
        self._buffer = bytearray()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)

    def send(self, message: dict[str, Any], deadline: float | None = None) -> None:
        """Send a message.

        Raises:
            GoneError: if the other side is gone, or does not read in time; if what it gave is too deep to be sent back.
        """
        try:
            data = memoryview(json.dumps(message).encode() + b"\n")
        except (ValueError, RecursionError) as error:
            raise GoneError("gave what cannot be written") from error
        try:
            while data:
                _wait(self._writing, select.POLLOUT, deadline)
                data = data[os.write(self._writing, data[:_CHUNK]) :]
        except OSError as error:
            raise GoneError(f"ended: {error.strerror}") from error

    def receive(self, deadline: float | None = None) -> dict[str, Any]:
        """Return the next message.

        Raises:
            GoneError: if the other side is gone, sends nonsense or too much, or nothing in time.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            _wait(self._reading, select.POLLIN, deadline)
            try:
                data = os.read(self._reading, _CHUNK)
            except OSError as error:
                raise GoneError(f"ended: {error.strerror}") from error
            if not data:
                raise GoneError("ended")
            self._buffer += data
            if len(self._buffer) > MAX_MESSAGE:
                raise GoneError(f"sent more than {MAX_MESSAGE} bytes")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise GoneError("sent nonsense") from error
        if not isinstance(message, dict):
            raise GoneError("sent nonsense")
        return message


def _wait(descriptor: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    milliseconds = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
    if not poll.poll(milliseconds):
        raise GoneError("gave no answer in time")


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """Return a value as JSON with tags; ``keep`` gives the tagged form of what is not data."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _MAX_INT_BITS else {"int": hex(value)}
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, keep) for item in value]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return keep(value)


def decode(data: Any, opaque: Mapping[str, Callable[[Any], Any]]) -> Any:
    """Return the value of JSON with tags: plain data, and what ``opaque`` makes of the tags that it names.

    Nothing here looks up a name or calls anything by what the data says, so that the hostile side chooses among plain
    values alone; what else a tag may stand for is up to the receiver.

    Raises:
        ValueError, TypeError: if the data is not of this format.
    """
    if isinstance(data, list):
        return [decode(item, opaque) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("data with other than one tag")
    ((tag, content),) = data.items()
    if tag in opaque:
        return opaque[tag](content)
    if tag in ("int", "bytes") and isinstance(content, str):
        return int(content, 16) if tag == "int" else bytes.fromhex(content)
    if tag in _CONTAINERS and isinstance(content, list):
        return _CONTAINERS[tag](decode(item, opaque) for item in content)
    if tag == "complex" and isinstance(content, list) and all(isinstance(part, float) for part in content):
        return complex(*content)
    if tag == "dict" and isinstance(content, list):
        return {decode(key, opaque): decode(item, opaque) for key, item in content}
    raise ValueError("an unknown tag, or not what it takes")


def run_source(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Run the source of a module in a namespace."""
    types.FunctionType(compile(source, name, "exec", dont_inherit=True), namespace)()


class Candidate:
    """The hostile side: holds the program and its objects, and answers one order at a time."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._opaque = {"kept": self._find, "builtin": lambda name: getattr(builtins, name)}
        """What the judge may name; nobody names anything to the judge."""
        self._module = types.ModuleType("solution")
        sys.modules["solution"] = self._module

    def serve(self, channel: Channel) -> None:
        """Answer until the other side goes."""
        while True:
            order = channel.receive()
            with Trap() as trap:
                reply = getattr(self, "do_" + order["do"])(*order["arguments"])
                channel.send({"reply": reply})
            if trap.error is not None:
                kinds = [kind.__name__ for kind in type(trap.error).__mro__ if kind.__module__ == "builtins"]
                text = ""
                with Trap():
                    text = str(trap.error)[:200]
                channel.send({"raised": kinds[0], "text": text})

    def do_load(self, setup: str, program: str) -> list[str]:
        """Run the program; return its names."""
        for source in (setup, program):
            run_source(source, "<program>", self._module.__dict__)
        return [name for name in self._module.__dict__ if not name.startswith("__")]

    def do_get(self, name: str) -> Any:
        """Return a name of the program; of ``Class.method``, the method of a new object."""
        target: Any = self._module
        for part in name.split("."):
            target = target() if isinstance(target, type) else target
            target = getattr(target, part)
        return encode(target, self._keep)

    def do_call(self, target: Any, arguments: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
        """Call; return the value, and those arguments that the call changed in place."""
        given = [decode(argument, self._opaque) for argument in arguments]
        named = {name: decode(argument, self._opaque) for name, argument in keywords.items()}
        value = decode(target, self._opaque)(*given, **named)
        after = {index: encode(item, self._keep) for index, item in enumerate(given) if isinstance(item, _MUTABLE)}
        changed = {index: item for index, item in after.items() if item != arguments[index]}
        return {"value": encode(value, self._keep), "changed": changed}

    def do_special(self, operation: str, target: Any, arguments: list[Any]) -> Any:
        """Do something other than a call to a kept object."""
        operations: dict[str, Callable[..., Any]] = {
            "attribute": getattr,
            "set": setattr,
            "list": list,
            "length": len,
            "truth": bool,
            "text": str,
            "item": lambda value, key: value[key],
            "set_item": lambda value, key, item: value.__setitem__(key, item),
        }
        given = [decode(argument, self._opaque) for argument in arguments]
        return encode(operations[operation](decode(target, self._opaque), *given), self._keep)

    def do_run(self, program: str, stdin: str, timeout_s: float, max_bytes: int) -> dict[str, Any]:
        """Run the program as a script in a fork; return its output and how it ended."""
        input_read, input_write = os.pipe()
        output_read, output_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            for source, target in ((input_read, 0), (output_write, 1)):
                os.dup2(source, target)
            os.closerange(3, 64)
            _run_script(program)
        os.close(input_read)
        os.close(output_write)
        given = stdin.encode(errors="surrogatepass")
        output, problem = _exchange(input_write, output_read, given, timeout_s, max_bytes)
        if problem:
            os.kill(pid, 9)
        _, status = os.waitpid(pid, 0)
        if not problem and status != 0:
            problem = f"ended with code {os.waitstatus_to_exitcode(status)}"
        return {"output": output.decode(errors="replace"), "problem": problem}

    def _keep(self, value: Any) -> dict[str, int]:
        for index, known in enumerate(self._objects):
            if known is value:
                return {"kept": index}
        self._objects.append(value)
        return {"kept": len(self._objects) - 1}

    def _find(self, index: Any) -> Any:
        return self._objects[index]


def _run_script(program: str) -> None:
    """Run a program as ``__main__`` on descriptors 0 and 1, and end the process."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.stdin = open(0, encoding="utf-8", errors="replace")
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace")
    sys.argv = ["program.py"]
    with Trap() as trap:
        run_source(program, "<program>", module.__dict__)
    is_good = trap.error is None or (isinstance(trap.error, SystemExit) and trap.error.code in (None, 0))
    with Trap() as flushing:
        sys.stdout.flush()
    os._exit(0 if is_good and flushing.error is None else 1)


def _exchange(writing: int, reading: int, given: bytes, timeout_s: float, max_bytes: int) -> tuple[bytes, str]:
    """Feed a process and read it until it closes its output; return that and what went wrong, or an empty text."""
    os.set_blocking(writing, False)
    deadline = time.monotonic() + timeout_s
    output = bytearray()
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(writing, select.POLLOUT)
    is_feeding = True
    problem = ""
    is_open = True
    while is_open and not problem:
        events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not events:
            problem = "gave no answer in time"
        if is_feeding and writing in events:
            given = _fed(writing, given)
            if not given:
                is_feeding = False
                poll.unregister(writing)
                os.close(writing)
        if reading in events:
            data = os.read(reading, _CHUNK)
            output += data
            is_open = bool(data)
        if len(output) > max_bytes:
            problem = f"printed more than {max_bytes} bytes"
    if is_feeding:
        os.close(writing)
    os.close(reading)
    return bytes(output[:max_bytes]), problem


def _fed(writing: int, given: bytes) -> bytes:
    """Return what is left to write; a process that reads no more, which is its right, gets no more."""
    try:
        return given[os.write(writing, given[:_CHUNK]) :]
    except OSError:
        return b""
