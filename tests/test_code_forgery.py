"""Programs that patch the harness around them, and speak to the judge in their own words: they choose data, no more."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from unigrpo.rewards.code import Code
from unigrpo.rewards.sandboxing.code_runs import Clock, ReportError, run_locally
from unigrpo.rewards.sandboxing.code_tests import CodeTests
from unigrpo.rewards.sandboxing.sandbox import SandboxUnavailableError
from unigrpo.rewards.sandboxing.sandbox_harness import Channel, decode
from unigrpo.rewards.sandboxing.sandbox_judge import Client, StandIn

ROUND_TRIP = ["assert decode(encode('abc')) == 'abc'", "assert encode('abc') == 'bcd'", "assert encode('x') == 'y'"]
TAKE_OVER = '''
PAYLOAD = """
import sys
frame = sys._getframe()
while frame and type(frame.f_locals.get('self')).__name__ != 'CodeTestRunner':
    frame = frame.f_back
judge = frame.f_locals['self']
for n in range(len(judge._order['tests'])):
    judge._send({'nonce': judge._order['nonce'], 'index': n, 'passed': True, 'reason': ''})
judge._send({'nonce': judge._order['nonce'], 'done': True})
"""
def encode(s): return PAYLOAD
def decode(s): return s
'''
PATCH = '''
import sys
Candidate = sys.modules["unigrpo.rewards.sandboxing.sandbox_harness"].Candidate
old_load, old_get, old_call = Candidate.do_load, Candidate.do_get, Candidate.do_call
def answers(load=None, get=None, value=None, raised=None):
    """Let the program's side of the wire say what the program likes."""
    if load: Candidate.do_load = lambda self, *a: load(old_load(self, *a))
    if get: Candidate.do_get = lambda self, name: get.get(name) or old_get(self, name)
    if value is not None: Candidate.do_call = lambda self, *a: {"value": value, "changed": {}}
    if raised:
        def do_call(self, *a): raise raised
        Candidate.do_call = do_call
'''


@pytest.fixture(scope="module")
def code() -> Code:
    try:
        return Code(timeout_s=4.0, total_timeout_s=8.0)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))


def score(code: Code, program: str, tests: list[str], **columns: Any) -> float | None:
    named = {name: [column] for name, column in columns.items()}
    return code(completions=[f"```python\n{program}\n```"], tests=[tests], **named)[0]


def test_round_trip_of_a_right_program_passes_and_identity_gets_what_it_is_worth(code: Code) -> None:
    right = (
        "def encode(s): return ''.join(chr(ord(c) + 1) for c in s)\n"
        "def decode(s): return ''.join(chr(ord(c) - 1) for c in s)"
    )
    assert score(code, right, ROUND_TRIP) == 1.0
    assert score(code, "def encode(s): return s\ndef decode(s): return s", ROUND_TRIP) == pytest.approx(1 / 3)


@pytest.mark.parametrize("tag", ["builtin", "attribute", "find", "__class__", "type", "function", "module"])
@pytest.mark.parametrize("name", ["exec", "eval", "__import__", "__spec__", "__dict__"])
def test_data_names_nothing_in_the_judge(tag: str, name: str) -> None:
    with pytest.raises(ValueError, match="unknown tag"):
        decode({tag: name}, {"kept": int})


@pytest.mark.parametrize(
    "forgery",
    [
        'answers(get={"decode": {"builtin": "exec"}})',
        'answers(get={"decode": {"builtin": "eval"}, "encode": {"builtin": "exec"}})',
        'answers(load=lambda names: {"encode": "", "decode": "builtins"}, get={"decode": {"module": "builtins"}})',
        'answers(load=lambda names: {"encode": "os", "decode": "subprocess"})',
        'answers(load=lambda names: [*names, "__builtins__", "__name__", "exec"])',
        'answers(get={"decode": {"kept": "exec"}})',
    ],
)
def test_program_runs_nothing_in_the_judge(code: Code, forgery: str) -> None:
    value = score(code, f"{PATCH}{TAKE_OVER}\n{forgery}", ROUND_TRIP)
    assert value == 0.0


def test_taking_over_would_work_if_a_test_ran_the_text_so_such_tests_are_left_out(code: Code) -> None:
    for test in ("exec(encode('abc'))", "run = eval\nrun(encode('x'))", "import pickle\npickle.loads(encode('x'))"):
        assert score(code, TAKE_OVER, [test, "assert False"]) is None
    assert score(code, "def f(): return 2", ["assert f() == eval('1 + 1')"]) == 1.0


@pytest.mark.parametrize(
    "test", ["d = f(1)\nd['isinstance'] = all\nassert d == 5", "assert f(1).__globals__['x'] == 5"]
)
@pytest.mark.parametrize("value", ["{'builtin': '__dict__'}", "{'builtin': 'len'}", "{'kept': -1}", "{'kept': True}"])
def test_no_value_is_a_built_in(code: Code, test: str, value: str) -> None:
    assert score(code, f"{PATCH}def f(x): return 0\nanswers(value={value})", [test, "assert f(2) == 3"]) == 0.0


@pytest.mark.parametrize(
    "value",
    [
        {"kept": -1},
        {"kept": True},
        {"kept": "0"},
        {"kept": 1e999},
        {"int": 5},
        {"int": "x"},
        {"bytes": [1]},
        {"complex": ["1", "2"]},
        {"complex": [10**400, 0]},
        {"tuple": "ab"},
        {"set": [[1]]},
        {"dict": [[[], 1]]},
        {"dict": {"a": 1}},
        {"list": []},
        {},
        {"int": "1", "bytes": ""},
        {"builtin": "len"},
    ],
)
def test_malformed_data_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode(value, {"kept": Client._stand_in.__get__(None)})


def test_function_of_the_program_goes_back_to_the_program_and_stays_opaque(code: Code) -> None:
    program = "def make(n):\n    return lambda x: x + n\ndef apply(function, x):\n    return function(x)"
    tests = [
        "assert apply(make(2), 3) == 5",
        "assert make(2)(3) == 5 and list(map(make(1), [1, 2])) == [2, 3]",
        "f = make(1)\nassert type(f).__name__ == 'StandIn' and f.__call__(1) == 2",
        "assert apply(sorted, (2, 1)) == [1, 2]",
    ]
    assert score(code, program, tests) == 1.0
    assert StandIn.__slots__ == ("_client", "_index"), "a number, and no object"


PASSED_ON = {
    "a built-in that is no function": ('answers(value={"builtin": "__spec__"})', "assert g(f(1)) == 2"),
    "a method of data": ("answers(value=[1])", "assert g(f(1).count) == 2"),
    "a view of data": ('answers(value={"dict": []})', "assert g(f(1).keys()) == 2"),
    "an iterator of data": ("answers(value=[1])", "assert g(f(1).__iter__()) == 2"),
    "the class of a stand-in": ('answers(value={"kept": 0})', "assert g(f(1).__class__) == 2"),
    "a method of a stand-in": ('answers(value={"kept": 0})', "assert g(f(1).__str__) == 2"),
    "a name that is data": ('answers(get={"f": [1]})', "assert g(f.count) == 2"),
    "an error": ("answers(raised=KeyError())", "try: f(1)\nexcept Exception as error: assert g(error) == 2"),
    "an error of its own": (
        "class Own(Exception): pass\nanswers(raised=Own())",
        "try: f(1)\nexcept Exception as error: assert g(error) == 2",
    ),
    "a module": ('answers(load=lambda names: {"f": "os", "g": ""}, get={"f": {"module": "os"}})', "assert g(f) == 2"),
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_the_program_caused_is_nothing_and_not_a_test_that_cannot_run(code: Code, name: str) -> None:
    forgery, test = PASSED_ON[name]
    program = f"{PATCH}def f(x): return 0\ndef g(x): return 0\n{forgery}"
    assert score(code, program, [test, "assert f(2) == 3"]) == 0.0


@pytest.mark.parametrize("given", ["lambda: 1", "range(3)", "(n for n in [1])", "[Mine()]", "Mine", "map(abs, [1])"])
def test_what_a_test_made_itself_leaves_the_item_out_whenever_it_comes(code: Code, given: str) -> None:
    tests = ["assert f(1) == 1", f"class Mine: pass\nassert f({given}) == 1"]
    assert score(code, "def f(x): return x", tests) is None


@pytest.mark.parametrize(
    "test",
    ["assert all(map(f, [1, 2]))", "for a, b in zip(map(f, [1]), [2]): assert a == b", "assert not list(map(f, [1]))"],
)
@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration"])
def test_program_cannot_end_a_loop_of_the_tests_early(code: Code, test: str, kind: str) -> None:
    assert score(code, f"def f(x): raise {kind}", [test]) == 0.0


FAKE_MATH = "import types\nmath = types.SimpleNamespace(isclose=lambda *a, **k: True)\ndef f(x): return 0"


@pytest.mark.parametrize(
    ("program", "tests", "value"),
    [
        (FAKE_MATH, ["assert math.isclose(f(2), 4)"], 0.0),
        (
            FAKE_MATH.replace("math = ", "import sys\nsys.modules['math'] = math = "),
            ["assert math.isclose(f(2), 4)"],
            0.0,
        ),
        (
            "import re as real\nclass re: match = lambda *a: True\ndef f(x): return ''",
            ["assert re.match('a', f(1))"],
            0.0,
        ),
        (
            "import types\nos = types.SimpleNamespace(path=types.SimpleNamespace(exists=bool))\ndef f(x): return '/x'",
            ["assert os.path.exists(f(1))"],
            0.0,
        ),
        ("def f(x): return x / 3", ["assert math.isclose(f(1), 1 / 3)"], 1.0),
        ("def copy(x): return x", ["assert copy([1]) == [1]"], 1.0),
        ("class queue:\n    size = staticmethod(lambda: 3)", ["assert queue.size() == 3"], 1.0),
        ("from datetime import datetime\ndef f(): return 2", ["assert datetime(2020, 1, 2).day == f()"], 1.0),
        ("class math: pi = 3", ["import math\nassert math.pi > 3.1"], 1.0),
    ],
)
def test_standard_module_of_the_tests_is_the_judges(code: Code, program: str, tests: list[str], value: float) -> None:
    assert score(code, program, tests) == value


def test_name_of_the_entry_point_is_the_programs_even_where_a_module_has_it(code: Code) -> None:
    assert score(code, "class math:\n    pi = 3", ["assert math.pi == 3"], entry_point="math") == 1.0


DEEP = """
import os, sys
harness = sys.modules["unigrpo.rewards.sandboxing.sandbox_harness"]
def send(self, message, deadline=None):
    text = '{"reply":' + "[" * DEPTH + "]" * DEPTH + "}" if ready else '{"reply": []}'
    ready.append(1)
    os.write(self._writing, text.encode() + b"\\n")
ready = []
harness.Channel.send = send
"""


def test_depth_at_the_limit_of_the_reader_fails_the_program_and_not_the_batch(code: Code) -> None:
    depths = [*range(965, 996), 100_000]
    programs = [f"```python\n{DEEP.replace('DEPTH', str(depth))}\n```" for depth in depths]
    values = code(
        completions=programs, entry_point=["f"] * len(depths), cases=[[{"input": [1], "output": 2}]] * len(depths)
    )
    assert values == [0.0] * len(depths)


class ForgedJudge:
    """A sandbox whose judge sends the reports it is told to send, with the right nonce."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self._reports = reports

    @contextmanager
    def judge(self) -> Iterator[tuple[Channel, None]]:
        ours, theirs = socket.socketpair()
        with closing(ours), closing(theirs):
            thread = threading.Thread(target=self._serve, args=[Channel(theirs.fileno())])
            thread.start()
            try:
                yield Channel(ours.fileno()), None
            finally:
                thread.join()  # Before the sockets close, also where a report was refused and the rest stays unread.

    def _serve(self, channel: Channel) -> None:
        channel.send({"ready": True})
        nonce = channel.receive()["nonce"]
        for report in ({"ready": True}, *self._reports, {"done": True}):
            channel.send({"nonce": nonce, **report})


PASSED = {"index": 1, "passed": True, "reason": ""}


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([PASSED] * 50, "reports test 1 twice"),
        ([PASSED | {"index": 2}], "reports test 2 of 2; wanted 0 to 1"),
        ([PASSED | {"index": -1}], "reports test -1 of 2"),
        ([PASSED | {"passed": 1}], "wanted index and passed"),
        ([{"index": 1}], "wanted index and passed"),
        ([{"value": 1, "index": 1}], "wanted index and passed"),
    ],
)
def test_local_judge_that_reports_what_it_cannot_is_an_error(reports: list[dict[str, Any]], message: str) -> None:
    task, clock = CodeTests(tests=("assert f() == 1", "assert f() == 2")), Clock(test_s=5, total_s=5)
    assert run_locally(ForgedJudge(PASSED), "", task, clock).num_passed == 1  # type: ignore[arg-type]
    with pytest.raises(ReportError, match=message):
        run_locally(ForgedJudge(*reports), "", task, clock)  # type: ignore[arg-type]
