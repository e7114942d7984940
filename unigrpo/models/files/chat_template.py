"""A checkpoint's chat template: read, tried once at load, and rendered in bounded time and memory.

A template is a program of a stranger's. Jinja's sandbox keeps it from Python's objects; it does not keep it from a loop
of 10^9 or a text of 10 GB. What is plainly linear in the messages is rendered here; all else in a process of its own
(`template_child`), which is killed when it takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.errors import UserError
from unigrpo.files import optional_file

if TYPE_CHECKING:
    from jinja2 import nodes

CHILD = Path(__file__).with_name("template_child.py")
MAX_CHARS = 1_000_000
"""Of a template; released ones have up to 20,000."""
SECONDS = 10.0
"""Of one rendering, the start of the process included."""
PROBE = ({"role": "user", "content": "2 + 2 = ?"},)
"""What a template must be able to write: one turn of the user's."""

LINEAR_CHARS = 4_096
"""Of a template that is rendered in this process: it can write a message no more often than it has room to name it."""
_PLAIN_NODES = (
    "Template Output TemplateData If CondExpr Const Name Getitem Getattr Compare Operand And Or Not Add Concat Neg"
).split()
"""What of a template's tree neither repeats nor remembers anything."""
_PLAIN_FILTERS = ("trim", "length", "string", "upper", "lower", "default", "first", "last")
"""Filters whose output is no longer than their input."""


def read_template(folder: Path, config: dict[str, Any]) -> tuple[str | None, Path]:
    """Return a folder's chat template, None where it has none, and the file that it is of.

    Args:
        folder: of the tokenizer's files.
        config: content of tokenizer_config.json.

    Raises:
        UserError: naming the file, where what stands there is no text or too long.
    """
    file = folder / "chat_template.jinja"
    if optional_file(file):
        if file.stat().st_size > 4 * MAX_CHARS:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes; a chat template has at most {MAX_CHARS:,}")
        try:
            return _checked_text(file.read_text(encoding="utf-8"), file), file
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    file = folder / "tokenizer_config.json"
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and "name" in entry and "template" in entry]
        if len(named) < len(template):
            raise UserError(f"{file}: chat_template is a list; wanted entries of `name` and `template`")
        template = next((entry["template"] for entry in named if entry["name"] == "default"), None)
    return (None if template is None else _checked_text(template, file)), file


def _checked_text(template: Any, file: Path) -> str:
    if not isinstance(template, str):
        raise UserError(f"{file}: the chat template is a JSON {type(template).__name__}; wanted text")
    if len(template) > MAX_CHARS:
        raise UserError(f"{file}: a chat template of {len(template):,} characters; wanted at most {MAX_CHARS:,}")
    return template


def token_text(config: dict[str, Any], key: str, folder: Path) -> str:
    """Return a special token of tokenizer_config.json, which is a string or a record with `content`; "" for none.

    Raises:
        UserError: naming the file, where it is neither.
    """
    given = config.get(key)
    text = given.get("content") if isinstance(given, dict) else given
    if text is None and not isinstance(given, dict):
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: {key} is {json.dumps(given)[:100]}; wanted text, or an object whose "
            "`content` is text"
        )
    return text


def try_template(template: str, where: Path, *, bos_token: str, eos_token: str) -> None:
    """Render a template once, on one turn of the user's; one that asks for other turns by itself is content.

    Raises:
        UserError: naming the file ``where`` it stands, if it cannot be rendered in bounded time and memory.
    """
    from unigrpo.models.files.template_child import REFUSAL

    try:
        _rendered(template, PROBE, bos_token, eos_token)
    except ValueError as error:
        if not str(error).startswith(REFUSAL):
            raise UserError(f"{where}: the chat template {error}") from error


def render(
    template: str, where: str, messages: Sequence[dict[str, str]], *, bos_token: str = "", eos_token: str = ""
) -> str:
    """Return messages as a template writes them, the assistant's header last.

    ``where`` is the file, or what errors call it; messages have a role and a content.

    Raises:
        UserError: if the template is broken, refuses the messages, or takes too much time or memory.
    """
    try:
        return _rendered(template, messages, bos_token, eos_token)
    except ValueError as error:
        raise UserError(f"{where}: the chat template {error}") from error


def _rendered(template: str, messages: Sequence[dict[str, str]], bos_token: str, eos_token: str) -> str:
    from unigrpo.models.files import template_child

    values = {"messages": list(messages), "bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": True}
    return template_child.render(template, values) if is_linear(template) else _CHILD.render(template, values)


@lru_cache(maxsize=16)
def is_linear(template: str) -> bool:
    """Return whether a template plainly takes time and memory in proportion to the messages and its own length.

    It is of text, conditions and loops over the messages that hold no loop; it keeps nothing between its parts, calls
    nothing but ``raise_exception``, and joins texts only where it writes them.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > LINEAR_CHARS:
        return False
    try:
        return _is_plain(ImmutableSandboxedEnvironment().parse(template), in_loop=False)
    except (TemplateSyntaxError, RecursionError):
        return False


def _is_plain(node: nodes.Node, *, in_loop: bool) -> bool:
    from jinja2 import nodes

    if isinstance(node, nodes.For):
        is_over_messages = isinstance(node.iter, nodes.Name) and node.iter.name == "messages"
        if in_loop or node.recursive or not is_over_messages:
            return False
        in_loop = True
    elif isinstance(node, nodes.Call):
        if not isinstance(node.node, nodes.Name) or node.node.name != "raise_exception":
            return False
    elif isinstance(node, nodes.Filter):
        if node.name not in _PLAIN_FILTERS:
            return False
    elif type(node).__name__ not in _PLAIN_NODES:
        return False
    return all(_is_plain(child, in_loop=in_loop) for child in node.iter_child_nodes())


class _Child:
    """One process for all templates of this one; started when first needed, and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Return what the process answers.

        Raises:
            ValueError: saying what is wrong with the template.
        """
        line = json.dumps({"template": template, "values": values}).encode() + b"\n"
        with self._lock:
            process = self._started()
            answer = self._exchange(process, line, time.monotonic() + SECONDS)
            if answer is None:
                is_late = process.poll() is None
                self.stop()
                how = f"takes more than {SECONDS:g} s and was stopped" if is_late else "broke the process it ran in"
                raise ValueError(f"{how}, at {len(values['messages'])} messages")
        found = json.loads(answer)
        if "error" in found:
            raise ValueError(found["error"])
        text: str = found["text"]
        return text

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run, which still has prompts to render
            )
            self._owner = os.getpid()
            atexit.unregister(self.stop)
            atexit.register(self.stop)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes | None:
        """Return the line that the process answers; None where it ends, or the deadline passes first."""
        assert process.stdin is not None and process.stdout is not None
        sender = threading.Thread(target=_send, args=(process, line), daemon=True)
        sender.start()  # a long conversation fills the pipe before the process has read it
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    process.wait()
                    return None
                answer += part
        sender.join()
        return bytes(answer)

    def stop(self) -> None:
        """End the process, if this one started it."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)


def _send(process: subprocess.Popen[bytes], line: bytes) -> None:
    try:
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()
    except (OSError, ValueError):  # it was killed, or ended: the reader says so
        return


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was not sent to a process that is gone
        return


_CHILD = _Child()
