"""Code: the fraction of a prompt's tests that the program in a completion passes, run in a sandbox."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from unigrpo.rewards.base import Column
from unigrpo.rewards.sandboxing.code_runs import BrokenTestsError, Clock, Verdict, run_locally
from unigrpo.rewards.sandboxing.code_tests import COLUMNS, CodeTests, extract_program, read_tests
from unigrpo.rewards.sandboxing.sandbox import Limits, Sandbox
from unigrpo.rewards.sandboxing.sandbox_harness import UnshippableError
from unigrpo.rewards.sandboxing.sandbox_http import RemoteSandbox
from unigrpo.rewards.text.answers import completion_text

_LOGGER = logging.getLogger(__name__)


class Code:
    """Run the last fenced Python block of the answer against the tests of the prompt.

    Range: 0 to 1; ``score: fraction`` is the share of tests passed, ``score: all`` is 1 only when every test passes.
        0 where there is no program, it does not run, or it hangs; None where a prompt has no tests that can run.
    Needs: text completions, and columns: ``tests`` (list of Python lines or blocks; with ``setup``, and ``entry_point``
        for ``check(candidate)``), or ``entry_point`` and ``cases`` (``{input: [arguments], output: value}``, JSON
        values), or ``inputs`` and ``outputs`` (texts of standard input and output). Bubblewrap, or ``sandbox_url``.
    Source: unit tests as in MBPP (arXiv 2108.07732), HumanEval (arXiv 2107.03374) and APPS (arXiv 2105.09938).
    Cost: one sandbox a program for cases and scripts, two for ``tests``; no GPU. Give ``timeout_s`` of the recipe room
        for 64 programs at ``total_timeout_s``, divided by ``num_parallel``.
    Hacked by: programs that know or guess the tests (write many, hide them from the prompt), and tests so loose that a
        constant passes; exit codes, printed markers, objects equal to everything and the like earn nothing.
    Recipe:
        code: {use: "unigrpo.rewards.code:Code", tasks: [reason], timeout_s: 600, arguments: {score: fraction}}
    """

    range = (0.0, 1.0)
    wanted_columns = COLUMNS
    needed_columns = (("tests",), ("entry_point", "cases"), ("inputs", "outputs"))
    is_deterministic = True

    def __init__(
        self,
        *,
        score: Literal["fraction", "all"] = "fraction",
        timeout_s: float = 6.0,
        total_timeout_s: float = 30.0,
        memory_mb: int = 1024,
        num_parallel: int = 2,
        python: str | None = None,
        sandbox_url: str | None = None,
        allow_unsafe_local: bool = False,
    ) -> None:
        """Set up, and try the sandbox.

        Args:
            score: ``fraction`` of the tests passed, or ``all`` of them or nothing.
            timeout_s: wall seconds of one test; a program that takes longer fails the tests after it, too.
            total_timeout_s: wall seconds of all tests of one program.
            memory_mb: address space of each process in the sandbox, and what all of them may hold together.
            num_parallel: programs at one time.
            python: interpreter in the local sandbox; None finds one.
            sandbox_url: address of a SandboxFusion server, used in place of a local sandbox.
            allow_unsafe_local: run programs on this machine without a sandbox.

        Raises:
            ValueError: if a setting is out of its bounds.
            SandboxUnavailableError: if this machine gives no sandbox and nothing else is set.
        """
        if score not in ("fraction", "all"):
            raise ValueError(f"score is {score!r}; it is fraction or all")
        if not 0 < timeout_s <= total_timeout_s:
            raise ValueError(
                f"timeout_s is {timeout_s:g} and total_timeout_s {total_timeout_s:g}; give 0 < timeout_s <= total"
            )
        if num_parallel < 1:
            raise ValueError(f"num_parallel is {num_parallel}; give at least 1")
        if sandbox_url is not None and allow_unsafe_local:
            raise ValueError("sandbox_url and allow_unsafe_local are both set; a program runs in one place")
        self._score = score
        self._num_parallel = num_parallel
        clock = Clock(test_s=timeout_s, total_s=total_timeout_s)
        self._judged: Callable[[str, CodeTests], Verdict]
        if sandbox_url is not None:
            remote = RemoteSandbox(sandbox_url, clock=clock, memory_mb=memory_mb)
            self._judged = remote.run
        else:
            limits = Limits(memory_mb=memory_mb, cpu_s=int(total_timeout_s) + 2)
            sandbox = Sandbox(limits=limits, python=python, allow_unsafe_local=allow_unsafe_local)
            self._judged = lambda program, tests: run_locally(sandbox, program, tests, clock)

    def __call__(self, *, completions: Column, log_metric: Any = None, **columns: Column) -> list[float | None]:
        """Return one value a completion.

        Raises:
            SandboxError: if the sandbox fails, as opposed to the program in it.
        """
        found = {name: columns[name] for name in COLUMNS if columns.get(name) is not None}
        if wrong := [name for name, column in found.items() if len(column) != len(completions)]:
            raise ValueError(
                f"Code got {len(completions)} completions and {len(found[wrong[0]])} of {wrong[0]}; give one each"
            )
        items = [
            (completion_text(completion), read_tests({name: column[index] for name, column in found.items()}))
            for index, completion in enumerate(completions)
        ]
        with ThreadPoolExecutor(self._num_parallel, thread_name_prefix="sandbox") as executor:
            verdicts = list(executor.map(lambda item: self._verdict(*item), items))
        if log_metric is not None:
            for verdict in filter(None, verdicts):
                log_metric("timeout_fraction", float(verdict.is_timeout))
                log_metric("no_program_fraction", float(verdict.reason == _NO_PROGRAM))
        return [None if verdict is None else self._value(verdict) for verdict in verdicts]

    def _verdict(self, text: str | None, tests: CodeTests | None) -> Verdict | None:
        if text is None or tests is None:
            return None
        program = extract_program(text)
        if program is None:
            return Verdict(num_passed=0, num_tests=tests.num_tests, reason=_NO_PROGRAM)
        try:
            verdict = self._judged(program, tests)
        except (BrokenTestsError, UnshippableError) as error:
            _LOGGER.warning("the tests of an item cannot run and are left out: %s", error)
            return None
        if verdict.reason:
            _LOGGER.debug("%d of %d tests: %s", verdict.num_passed, verdict.num_tests, verdict.reason)
        return verdict

    def _value(self, verdict: Verdict) -> float:
        if self._score == "all":
            return float(verdict.num_passed == verdict.num_tests)
        return verdict.num_passed / verdict.num_tests


_NO_PROGRAM = "no program"
