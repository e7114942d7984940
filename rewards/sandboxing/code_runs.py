"""Run the tests of one program: in boxes of this machine, or on a server. What passed is decided outside of both."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.rewards.sandboxing.code_answers import equals, is_same_output, to_data
from unigrpo.rewards.sandboxing.code_tests import CodeTests
from unigrpo.rewards.sandboxing.sandbox import START_TIMEOUT_S, Box, Sandbox, SandboxError
from unigrpo.rewards.sandboxing.sandbox_harness import Channel, GoneError

MAX_OUTPUT = 2**20
"""Bytes that a program may print in one run."""


class BrokenTestsError(ValueError):
    """The data's tests cannot run, whatever the program."""


class ReportError(SandboxError):
    """A judge's report that no judge of ours makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one program."""

    num_passed: int
    num_tests: int
    reason: str = ""
    """Why the first failure failed."""
    is_timeout: bool = False
    """Whether the program ran out of time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """How long a program may take on the wall."""

    test_s: float
    """For one test; a program that hangs fails the tests that follow, too."""
    total_s: float
    """For all tests of a program."""


def run_locally(sandbox: Sandbox, program: str, tests: CodeTests, clock: Clock) -> Verdict:
    """Return how a program does.

    Raises:
        SandboxError: if the sandbox fails; what the program brings about is never an error.
        BrokenTestsError: if the tests cannot run.
    """
    if tests.tests:
        with sandbox.judge() as (channel, box):
            return _run_tests(channel, box, program, tests, clock)
    with sandbox.candidate() as channel:
        counts = TestCounts(tests.num_tests, clock)
        if tests.cases:
            _run_cases(channel, program, tests, counts)
        else:
            _run_scripts(channel, program, tests.runs, counts)
        return counts.verdict()


class TestCounts:
    """Counts what passed and asks for the next answer within the time that is left."""

    def __init__(self, num_tests: int, clock: Clock) -> None:
        self._num_tests, self._clock = num_tests, clock
        self._end = time.monotonic() + clock.total_s
        self._num_passed = 0
        self._reason = ""
        self._reported: set[int] = set()
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

    def claim(self, index: object) -> int:
        """Return the number of the test that a report is of; a second report of one would count it twice.

        Raises:
            ReportError: if there is no such test, or it has been reported.
        """
        if type(index) is not int or not 0 <= index < self._num_tests:
            given = repr(index[:40]) if isinstance(index, str) else shown(index)
            raise ReportError(f"it reports test {given} of {self._num_tests}; wanted 0 to {self._num_tests - 1}")
        if index in self._reported:
            raise ReportError(f"it reports test {index} twice; wanted one report a test")
        self._reported.add(index)
        return index

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


def shown(value: object) -> str:
    """Return what came, for a message: cut short, and whatever its depth."""
    try:
        return (value if isinstance(value, str) else repr(value))[:200]
    except RecursionError:
        return f"a deep {type(value).__name__}"


def enter_report(report: dict[str, Any], tests: CodeTests, counts: TestCounts) -> bool:
    """Enter one report of a judge and return whether it is the last one.

    Raises:
        ReportError: if it is of no test, of one that has been reported, or not of a kind that these tests have.
        BrokenTestsError: if it says that the tests cannot run.
    """
    if "broken" in report:
        raise BrokenTestsError(shown(report["broken"]))
    if "stopped" in report:
        counts.stop(shown(report["stopped"]))
        return True
    if "done" in report:
        return True
    if "ready" in report or "loaded" in report:
        return False
    if tests.tests and isinstance(report.get("passed"), bool):
        counts.claim(report.get("index"))
        counts.count(report["passed"], shown(report.get("reason")))
    elif tests.cases and "value" in report:
        wanted = tests.cases[counts.claim(report.get("index"))][1]
        counts.count(equals(report["value"], wanted), "a wrong value")
    elif tests.cases and "raised" in report:
        counts.claim(report.get("index"))
        counts.count(False, shown(report["raised"]))
    else:
        kinds = "index and passed" if tests.tests else "index and value or raised"
        raise ReportError(f"it reports {shown(report)}; wanted {kinds}")
    return False


def _run_cases(channel: Channel, program: str, tests: CodeTests, counts: TestCounts) -> None:
    loaded = counts.ask(channel, "load", tests.setup, program)
    if "reply" not in loaded:
        counts.stop(_raised(loaded))
    for given, wanted in tests.cases:
        if counts.is_over:
            return
        target = counts.ask(channel, "get", tests.entry_point)
        if counts.is_over or "reply" not in target:
            counts.count(False, _raised(target))
            continue
        answer = counts.ask(channel, "call", target["reply"], [to_data(item) for item in given], {})
        reply = answer.get("reply")
        value = reply.get("value", _NOTHING) if isinstance(reply, dict) else _NOTHING
        is_right = "reply" in answer and equals(value, wanted)
        counts.count(is_right, _raised(answer) if "reply" not in answer else "a wrong value")


_NOTHING = {"nothing": 0}


def _raised(answer: dict[str, Any]) -> str:
    told = [answer.get(name, "nothing") for name in ("raised", "text")]
    return ": ".join(text if isinstance(text, str) else "nonsense" for text in told)[:200]


def _run_scripts(channel: Channel, program: str, runs: Sequence[tuple[str, str]], counts: TestCounts) -> None:
    for given, wanted in runs:
        left_s = counts.left_s
        if left_s == 0:
            counts.stop("gave no answer in time")
        if counts.is_over:
            return
        reply = counts.ask(channel, "run", program, given, left_s, MAX_OUTPUT, grace_s=1.0).get("reply")
        if counts.is_over:
            return
        output, problem = (reply.get("output"), reply.get("problem")) if isinstance(reply, dict) else (None, "nonsense")
        has_passed = not problem and isinstance(output, str) and is_same_output(output, wanted)
        counts.count(has_passed, problem if problem and isinstance(problem, str) else "a wrong output")


def _run_tests(channel: Channel, box: Box, program: str, tests: CodeTests, clock: Clock) -> Verdict:
    """Send the judge its order and read its reports; only those with the order's nonce count."""
    nonce = secrets.token_hex(16)
    order = {
        "nonce": nonce,
        "program": program,
        "setup": tests.setup,
        "tests": tests.tests,
        "entry_point": tests.entry_point,
        "timeout_s": clock.test_s,
        "start_timeout_s": START_TIMEOUT_S,
    }
    _start_judge(channel, box, order)
    counts = TestCounts(len(tests.tests), clock)
    is_last = False
    while not is_last:
        if counts.left_s == 0:
            counts.stop("gave no answer in time")
            break
        try:
            report = _next_report(channel, nonce, time.monotonic() + counts.left_s + 1.0)
        except GoneError as error:
            counts.stop(str(error))
            break
        is_last = enter_report(report, tests, counts)
    return counts.verdict()


def _start_judge(channel: Channel, box: Box, order: dict[str, Any]) -> None:
    """Send the order and wait until both boxes run."""
    end = time.monotonic() + 2 * START_TIMEOUT_S
    try:
        ready = channel.receive(end)
        channel.send(order, end)
        report = _next_report(channel, order["nonce"], end) if ready == {"ready": True} else ready
    except GoneError as error:
        raise SandboxError(f"the judge's sandbox {error}; {box.problem()}") from error
    if "ready" not in report:
        raise SandboxError(f"a sandbox did not start: {report}; {box.problem()}")


def _next_report(channel: Channel, nonce: str, deadline: float) -> dict[str, Any]:
    """Return the next message that carries the nonce; one that does not is no report."""
    while True:
        report = channel.receive(deadline)
        if secrets.compare_digest(str(report.get("nonce", "")).encode(), nonce.encode()):
            return report
