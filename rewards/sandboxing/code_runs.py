"""Run the tests of one program: in boxes of this machine, or on a server. What passed is decided outside of both."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.rewards.sandboxing.code_answers import equals, is_same_output, to_data
from unigrpo.rewards.sandboxing.code_tasks import Task
from unigrpo.rewards.sandboxing.sandbox import START_TIMEOUT_S, Box, Sandbox, SandboxError
from unigrpo.rewards.sandboxing.sandbox_harness import Channel, GoneError

MAX_OUTPUT = 2**20
"""Bytes that a program may print in one run."""


class BrokenTestsError(ValueError):
    """The data's tests cannot run, whatever the program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one program."""

    num_passed: int
    num_tests: int
    reason: str = ""
    """Of the first failure."""
    is_timeout: bool = False
    """Whether the program ran out of time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """How long a program may take on the wall."""

    test_s: float
    """For one test; a program that hangs fails the tests that follow, too."""
    total_s: float
    """For all tests of a program."""


def run_locally(sandbox: Sandbox, program: str, task: Task, clock: Clock) -> Verdict:
    """Return how a program does.

    Raises:
        SandboxError: if the sandbox fails; what the program brings about is never an error.
        BrokenTestsError: if the tests cannot run.
    """
    if task.tests:
        with sandbox.judge() as (channel, box):
            return _run_tests(channel, box, program, task, clock)
    with sandbox.candidate() as channel:
        tally = Tally(task.num_tests, clock)
        if task.cases:
            _run_cases(channel, program, task, tally)
        else:
            _run_scripts(channel, program, task.runs, tally)
        return tally.verdict()


class Tally:
    """Counts what passed and asks for the next answer within the time that is left."""

    def __init__(self, num_tests: int, clock: Clock) -> None:
        self._num_tests, self._clock = num_tests, clock
        self._end = time.monotonic() + clock.total_s
        self._num_passed = 0
        self._reason = ""
        self.is_over = False
        """Whether the tests that have not run count as failed."""

    @property
    def left_s(self) -> float:
        """Return the seconds that the next test may take."""
        return max(0.0, min(self._clock.test_s, self._end - time.monotonic()))

    def count(self, has_passed: bool, reason: str) -> None:
        """Note one test."""
        self._num_passed += has_passed
        if not has_passed:
            self._reason = self._reason or reason

    def stop(self, reason: str) -> None:
        """Note that the rest of the tests failed."""
        self.is_over = True
        self.count(False, reason)

    def ask(self, channel: Channel, do: str, *arguments: Any, grace_s: float = 0.0) -> dict[str, Any]:
        """Return the program's answer; an empty one where there is none, and then the run is over."""
        deadline = time.monotonic() + self.left_s + grace_s
        try:
            channel.send({"do": do, "arguments": arguments}, deadline)
            return channel.receive(deadline)
        except GoneError as error:
            self.stop(str(error))
            return {}

    def verdict(self) -> Verdict:
        """Return the sum."""
        return Verdict(
            num_passed=self._num_passed,
            num_tests=self._num_tests,
            reason=self._reason,
            is_timeout="in time" in self._reason,
        )


def _run_cases(channel: Channel, program: str, task: Task, tally: Tally) -> None:
    loaded = tally.ask(channel, "load", task.setup, program)
    if "reply" not in loaded:
        tally.stop(_raised(loaded))
    for given, wanted in task.cases:
        if tally.is_over:
            return
        target = tally.ask(channel, "get", task.entry_point)
        if tally.is_over or "reply" not in target:
            tally.count(False, _raised(target))
            continue
        answer = tally.ask(channel, "call", target["reply"], [to_data(item) for item in given], {})
        reply = answer.get("reply")
        value = reply.get("value", _NOTHING) if isinstance(reply, dict) else _NOTHING
        is_right = "reply" in answer and equals(value, wanted)
        tally.count(is_right, _raised(answer) if "reply" not in answer else "a wrong value")


_NOTHING = {"nothing": 0}


def _raised(answer: dict[str, Any]) -> str:
    told = [answer.get(name, "nothing") for name in ("raised", "text")]
    return ": ".join(text if isinstance(text, str) else "nonsense" for text in told)[:200]


def _run_scripts(channel: Channel, program: str, runs: Sequence[tuple[str, str]], tally: Tally) -> None:
    for given, wanted in runs:
        left_s = tally.left_s
        if left_s == 0:
            tally.stop("gave no answer in time")
        if tally.is_over:
            return
        reply = tally.ask(channel, "run", program, given, left_s, MAX_OUTPUT, grace_s=1.0).get("reply")
        if tally.is_over:
            return
        output, problem = (reply.get("output"), reply.get("problem")) if isinstance(reply, dict) else (None, "nonsense")
        has_passed = not problem and isinstance(output, str) and is_same_output(output, wanted)
        tally.count(has_passed, problem if problem and isinstance(problem, str) else "a wrong output")


def _run_tests(channel: Channel, box: Box, program: str, task: Task, clock: Clock) -> Verdict:
    """Send the judge its order and read its reports; only those with the order's nonce count."""
    nonce = secrets.token_hex(16)
    order = {
        "nonce": nonce,
        "program": program,
        "setup": task.setup,
        "tests": task.tests,
        "entry_point": task.entry_point,
        "timeout_s": clock.test_s,
        "start_timeout_s": START_TIMEOUT_S,
    }
    _start_judge(channel, box, order)
    tally = Tally(len(task.tests), clock)
    while not tally.is_over:
        if tally.left_s == 0:
            tally.stop("gave no answer in time")
            break
        try:
            report = _next_report(channel, nonce, time.monotonic() + tally.left_s + 1.0)
        except GoneError as error:
            tally.stop(str(error))
            break
        if "broken" in report:
            raise BrokenTestsError(report["broken"])
        if "index" in report:
            tally.count(report["passed"] is True, str(report["reason"]))
        elif "stopped" in report:
            tally.stop(str(report["stopped"]))
        elif "done" in report:
            break
    return tally.verdict()


def _start_judge(channel: Channel, box: Box, order: dict[str, Any]) -> None:
    """Send the order and wait until both boxes run."""
    end = time.monotonic() + 2 * START_TIMEOUT_S
    try:
        ready = channel.receive(end)
        channel.send(order, end)
        report = _next_report(channel, order["nonce"], end) if ready == {"ready": True} else ready
    except GoneError as error:
        raise SandboxError(f"the judge's sandbox {error}; {box.complaint()}") from error
    if "ready" not in report:
        raise SandboxError(f"a sandbox did not start: {report}; {box.complaint()}")


def _next_report(channel: Channel, nonce: str, deadline: float) -> dict[str, Any]:
    """Return the next message that carries the nonce; one that does not is no report."""
    while True:
        report = channel.receive(deadline)
        if secrets.compare_digest(str(report.get("nonce", "")).encode(), nonce.encode()):
            return report
