"""A small server that speaks the chat API, and one that misbehaves, over real sockets."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    number: int

    @property
    def text(self) -> str:
        """All text of the user's message."""
        content = self.body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(part.get("text", "") for part in content)

    @property
    def candidate(self) -> str:
        """What stands between the marks."""
        mark = self.text.split("Between <candidate-")[1].split(">")[0]
        return self.text.split(f"\n<candidate-{mark}>\n")[1].split(f"\n</candidate-{mark}>")[0]


@dataclass
class Server:
    """A running server and what it was asked."""

    url: str
    requests: list[Request] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def said(text: str, **choice: Any) -> dict[str, Any]:
    """A reply whose only choice is a text."""
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | choice]
    }


def scored(score: Any) -> dict[str, Any]:
    return said(json.dumps({"reason": "because", "score": score}))


def first_token(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """A reply whose first token has these probabilities."""
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in probabilities.items()]
    return said(
        max(probabilities, key=lambda token: probabilities[token]),
        logprobs={"content": [top[0] | {"top_logprobs": top}]},
    )


class Handler(BaseHTTPRequestHandler):
    """Passes each question to ``answer``; a dict is sent as JSON, a callable writes by itself."""

    protocol_version = "HTTP/1.1"
    server_state: Server
    answer: Callable[[Request], Any]

    def log_message(self, *arguments: Any) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            request = Request(self.path, dict(self.headers), body, len(state.requests))
            state.requests.append(request)
            state.num_running += 1
            state.most_running = max(state.most_running, state.num_running)
        try:
            reply = type(self).answer(request)
            if callable(reply):
                reply(self)
            else:
                self.send(200, json.dumps(reply).encode())
        except OSError:
            self.close_connection = True
        finally:
            with state.lock:
                state.num_running -= 1

    def send(self, status: int, payload: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextlib.contextmanager
def serving(answer: Callable[[Request], Any]) -> Iterator[Server]:
    """Serve on a free port until the block ends."""
    state = Server("")
    handler = type("Bound", (Handler,), {"server_state": state, "answer": staticmethod(answer)})
    server = _Listener(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int, payload: bytes = b"{}", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(code, payload, **headers)


def raw(payload: bytes) -> Callable[[Handler], None]:
    """Write bytes that need not be HTTP and hang up."""

    def write(handler: Handler) -> None:
        handler.wfile.write(payload)
        handler.close_connection = True

    return write


def endless(piece: bytes = b"x" * 1000, wait_s: float = 0.0) -> Callable[[Handler], None]:
    """Chunks without an end."""

    def write(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(wait_s)

    return write
