"""Programs on a SandboxFusion-compatible server: ``POST /run_code``, read with care.

What a server prints is evidence only as far as we can tell it from a program's own words: scripts are judged by their
output here; for calls only values travel back and are compared here; test lines run in a judge's process on the server
(:mod:`unigrpo.rewards.sandboxing.sandbox_remote`) and count with the nonce of the order.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import threading
import time
import urllib.parse
from typing import Any

from unigrpo.rewards.sandboxing.code_answers import is_same_output, to_data
from unigrpo.rewards.sandboxing.code_runs import Clock, ReportError, TestCounts, Verdict, enter_report, shown
from unigrpo.rewards.sandboxing.code_tests import CodeTests
from unigrpo.rewards.sandboxing.sandbox import SandboxError, joined_sources

MAX_REPLY = 16 * 2**20
"""Bytes of one reply of the server."""
_COMPILE_S = 10.0
_NUM_TRIES = 3
_FIRST_PAUSE_S = 0.5
_RETRIED = (429, 500, 502, 503, 504)


class SandboxServerError(SandboxError):
    """The server is down, too slow or speaks another language."""


class _ReplyTooLongError(SandboxServerError):
    """The server sent more than is read."""


class _ServerBusyError(SandboxServerError):
    """A failure that may pass: worth another try."""


class RemoteSandbox:
    """Runs programs on a server.

    Example:
        >>> RemoteSandbox("http://127.0.0.1:8080", clock=Clock(test_s=6, total_s=30)).run(program, tests)
    """

    def __init__(self, url: str, *, clock: Clock, memory_mb: int = 1024, queue_s: float = 60.0) -> None:
        """Set up; nothing is sent.

        Args:
            url: of the server; ``/run_code`` is added.
            clock: the time of a program.
            memory_mb: what a program may use.
            queue_s: what a request may take beyond its program's time, tries and waiting included.

        Raises:
            ValueError: if the address is none.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"sandbox_url is {url!r}; give http://host:port or https://host")
        self._parts, self._clock, self._memory_mb, self._queue_s = parts, clock, memory_mb, queue_s

    def run(self, program: str, tests: CodeTests) -> Verdict:
        """Return how a program does.

        Raises:
            SandboxServerError: if the server gives no usable answer in time.
            BrokenTestsError: if the tests cannot run.
        """
        counts = TestCounts(tests.num_tests, self._clock)
        if tests.runs:
            for given, wanted in tests.runs:
                if not counts.is_over:
                    self._run_script(program, given, wanted, counts)
        else:
            self._run_order(program, tests, counts)
        return counts.verdict()

    def _run_script(self, program: str, given: str, wanted: str, counts: TestCounts) -> None:
        left_s = counts.left_s
        if left_s == 0:
            counts.stop("gave no answer in time")
            return
        try:
            result = self._run_code(program, given, left_s)
        except _ReplyTooLongError:
            counts.stop(f"printed more than {MAX_REPLY} bytes")
            return
        if _is_late(result):
            counts.stop("gave no answer in time")
            return
        output, code = self._text(result), result.get("return_code")
        if type(code) is not int:
            raise SandboxServerError(f"{self._parts.netloc} sent return_code {shown(code)}; wanted a number")
        counts.count(code == 0 and is_same_output(output, wanted), f"ended with code {code}, or a wrong output")

    def _run_order(self, program: str, tests: CodeTests, counts: TestCounts) -> None:
        order = {
            "nonce": secrets.token_hex(16),
            "kind": "tests" if tests.tests else "calls",
            "program": program,
            "setup": tests.setup,
            "tests": tests.tests,
            "entry_point": tests.entry_point,
            "calls": [[to_data(item) for item in given] for given, _ in tests.cases],
            "timeout_s": self._clock.test_s,
            "start_timeout_s": self._clock.total_s,
        }
        candidate = joined_sources("sandbox_harness", "sandbox_judge", "sandbox_remote") + "module.candidate_main()\n"
        source = joined_sources("sandbox_harness", "sandbox_judge", "sandbox_remote")
        source += f"module.main({order!r}, {candidate!r})\n"
        result = self._run_code(source, "", self._clock.total_s)
        is_late = _is_late(result)
        reports = self._reports(self._text(result), order["nonce"])
        if not is_late and not any("ready" in report or "broken" in report for report in reports):
            told = [report["trouble"] for report in reports if "trouble" in report] or [
                result.get("stderr") or "nothing"
            ]
            raise SandboxServerError(f"{self._parts.netloc}: the judge did not start; it said: {_end_of(told[0])}")
        try:
            has_ended = any(enter_report(report, tests, counts) for report in reports)
        except ReportError as error:
            raise SandboxServerError(f"{self._parts.netloc} sent what is not the judge's: {error}") from error
        if not has_ended:
            counts.stop("gave no answer in time" if is_late else "ended without a verdict")

    def _text(self, result: dict[str, Any]) -> str:
        """Return what a program printed; a run that was cut off may come without."""
        stdout = result.get("stdout")
        if stdout is None and _is_late(result):
            return ""
        if not isinstance(stdout, str):
            raise SandboxServerError(f"{self._parts.netloc} sent stdout {shown(stdout)}; wanted a text")
        return stdout

    def _reports(self, output: str, nonce: str) -> list[dict[str, Any]]:
        """Return the reports of the judge; a line that is cut off is none."""
        reports = []
        for line in output.split("\n"):
            if line.startswith(f"{nonce} "):
                try:
                    report = json.loads(line[len(nonce) + 1 :])
                except (ValueError, RecursionError):
                    continue
                if not isinstance(report, dict):
                    told = f"{self._parts.netloc} sent the report {shown(report)}"
                    raise SandboxServerError(f"{told}; wanted an object, as the judge prints it")
                reports.append(report)
        return reports

    def _run_code(self, code: str, stdin: str, run_s: float) -> dict[str, Any]:
        """Return the server's ``run_result``."""
        request = {
            "code": code,
            "language": "python",
            "stdin": stdin,
            "compile_timeout": _COMPILE_S,
            "run_timeout": run_s,
            "memory_limit_MB": self._memory_mb,
        }
        reply = self._asked(request, time.monotonic() + run_s + self._queue_s)
        result = reply.get("run_result")
        if reply.get("status") not in ("Success", "Failed") or not isinstance(result, dict):
            told = shown(reply.get("message") or reply)
            status = shown(reply.get("status"))
            raise SandboxServerError(f"{self._parts.netloc} could not run a program ({status}): {told}")
        return result

    def _asked(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Return the server's reply; a busy server is asked again until the deadline."""
        for attempt in range(_NUM_TRIES):
            try:
                return self._post(json.dumps(request).encode(), deadline)
            except _ServerBusyError:
                pause_s = _FIRST_PAUSE_S * 4**attempt
                if attempt == _NUM_TRIES - 1 or time.monotonic() + pause_s >= deadline:
                    raise
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _post(self, body: bytes, deadline: float) -> dict[str, Any]:
        where = self._parts.netloc
        left_s = max(0.001, deadline - time.monotonic())
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=left_s)
        alarm: threading.Timer | None = None
        try:
            connection.connect()
            alarm = threading.Timer(max(0.001, deadline - time.monotonic()), _hang_up, [connection.sock])
            alarm.daemon = True
            alarm.start()
            path = f"{self._parts.path.rstrip('/')}/run_code"
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read(MAX_REPLY + 1)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline - 0.01:
                raise SandboxServerError(f"{where} gave no whole answer in {left_s:.1f} s") from error
            raise _ServerBusyError(f"{where} broke off: {type(error).__name__}: {error}") from error
        finally:
            if alarm is not None:
                alarm.cancel()
            connection.close()
        if time.monotonic() >= deadline:
            raise SandboxServerError(f"{where} gave no whole answer in {left_s:.1f} s")
        if len(text) > MAX_REPLY:
            raise _ReplyTooLongError(f"{where} sent more than {MAX_REPLY} bytes")
        if reply.status != 200:
            failure = _ServerBusyError if reply.status in _RETRIED else SandboxServerError
            raise failure(f"{where} answered {reply.status}: {text[:200].decode(errors='replace')}")
        return _parsed(text, where)


def _hang_up(connected: socket.socket) -> None:
    """End a connection whose time is up, however slowly it still drips."""
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SandboxServerError(f"{where} sent what is not JSON: {text[:100]!r}") from error
    if not isinstance(reply, dict):
        raise SandboxServerError(f"{where} sent a {type(reply).__name__}; wanted run_code's object")
    return reply


def _is_late(result: dict[str, Any]) -> bool:
    return bool(result.get("status") == "TimeLimitExceeded")


def _end_of(told: object) -> str:
    return told[-200:] if isinstance(told, str) else shown(told)
