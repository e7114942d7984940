"""The code reward on programs that play by the rules; figures are counted by hand."""

import time
from typing import Any

import pytest

from unigrpo.rewards.code import Code
from unigrpo.rewards.sandboxing import sandbox
from unigrpo.rewards.sandboxing.code_answers import equals, is_same_output, to_data
from unigrpo.rewards.sandboxing.code_tests import CodeTests, extract_program, read_tests
from unigrpo.rewards.sandboxing.sandbox import Sandbox, SandboxUnavailableError
from unigrpo.testing.conformance import check_reward


def fenced(program: str) -> str:
    return f"Here it is.\n```python\n{program}\n```\nDone."


@pytest.fixture(scope="module")
def code() -> Code:
    try:
        return Code(timeout_s=5.0)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))


ADD = "def add(a, b):\n    return a + b"


def test_value_is_the_fraction_of_tests_passed(code: Code) -> None:
    tests = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add(0, 0) == 1"]
    programs = [fenced(ADD), fenced("def add(a, b): return 3"), "no program", fenced("def other(): pass")]
    values = code(completions=programs, tests=[tests] * 4)
    assert values == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0, 0.0]


def test_all_or_nothing_is_a_setting() -> None:
    try:
        strict = Code(score="all")
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    tests = [["assert add(1, 2) == 3", "assert add(0, 0) == 1"], ["assert add(1, 2) == 3"]]
    assert strict(completions=[fenced(ADD)] * 2, tests=tests) == [0.0, 1.0]


def test_items_without_tests_have_no_value(code: Code) -> None:
    assert code(completions=[fenced(ADD)] * 3, tests=[None, [], ["assert add(1, 1) == 2"]]) == [None, None, 1.0]
    assert code(completions=[fenced(ADD)]) == [None]
    assert code(completions=[]) == []


def test_tests_that_cannot_run_are_left_out_and_cost_nobody(code: Code, caplog: pytest.LogCaptureFixture) -> None:
    tests = [["assert add(1, ==", "assert True"], ["assert add(lambda: 1, 2)"], [7], ["assert add(1, 1) == 2"]]
    assert code(completions=[fenced(ADD)] * 4, tests=tests) == [None, None, None, 1.0]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


CASES = [{"input": [1, 2], "output": 3}, {"input": [[1], [2]], "output": [1, 2]}, [["a", "b"], "ab"], [[1, 2], True]]


def test_cases_call_the_entry_point(code: Code) -> None:
    method = "class Solution:\n    def add(self, a, b):\n        return a + b"
    programs = [fenced(ADD), fenced(method), fenced("def add(a, b):\n    raise ValueError")]
    values = code(completions=programs, entry_point=["add", "Solution.add", "add"], cases=[CASES] * 3)
    assert values == [0.75, 0.75, 0.0]


def test_scripts_are_judged_by_their_output(code: Code) -> None:
    programs = [
        "a, b = map(int, input().split())\nprint(a + b)",
        "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\nsys.exit(0)",
        "def main():\n    print(3)\nif __name__ == '__main__':\n    main()",
        "print(3)\nraise SystemExit(1)",
        "print('3 ', 3)",
    ]
    values = code(completions=list(map(fenced, programs)), inputs=[["1 2\n", "40 2"]] * 5, outputs=[["3\n", "42"]] * 5)
    assert values == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_large_input_and_output_pass(code: Code) -> None:
    text = "\n".join(map(str, range(40_000)))
    echo = "import sys\nsys.stdout.write(sys.stdin.read())"
    assert code(completions=[fenced(echo)], inputs=[[text]], outputs=[[text]]) == [1.0]


PROGRAM = """
import math
class Node:
    def __init__(self, value):
        self.value, self.left = value, None
def depth(node):
    return 0 if node is None else 1 + depth(node.left)
def sort_in_place(items):
    items.sort()
def root(x):
    if x < 0:
        raise ValueError("negative")
    return math.sqrt(x)
def pair(x):
    return (x, {x: {1, 2}, "big": 10**5000, "bytes": b"x"})
def numbers():
    yield from range(3)
class MyError(KeyError):
    pass
def fails():
    raise MyError("x")
def apply(function, x):
    return function(x)
"""
TESTS = [
    "node = Node(1)\nnode.left = Node(2)\nassert depth(node) == 2 and node.left.value == 2",
    "items = [3, 1, 2]\nsort_in_place(items)\nassert items == [1, 2, 3]",
    "assert math.isclose(root(2), 2**0.5)",
    "try:\n    root(-1)\n    raise AssertionError\nexcept ValueError as error:\n    assert str(error) == 'negative'",
    "assert pair(1) == (1, {1: {1, 2}, 'big': 10**5000, 'bytes': b'x'})",
    "assert list(numbers()) == [0, 1, 2] and len(list(numbers())) == 3",
    "try:\n    fails()\n    assert False\nexcept KeyError:\n    pass",
    "assert apply(len, [1, 2]) == 2 and apply(sorted, (2, 1)) == [1, 2]",
    "assert depth(None) == 0",
]


@pytest.mark.parametrize("test", TESTS)
def test_ordinary_test_line_works_across_processes(code: Code, test: str) -> None:
    assert code(completions=[fenced(PROGRAM)], tests=[[test]]) == [1.0]


def test_check_function_gets_the_candidate(code: Code) -> None:
    check = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4"
    values = code(
        completions=[fenced(ADD), fenced("def add(a, b): return 3")], tests=[[check]] * 2, entry_point=["add"] * 2
    )
    assert values == [1.0, 0.0]


def test_setup_runs_for_program_and_tests(code: Code) -> None:
    setup = "from math import floor\nclass Point:\n    def __init__(self, x): self.x = x"
    program = "def double(point): return Point(floor(point.x * 2))"
    assert code(
        completions=[fenced(program)], setup=[setup], tests=[["assert double(Point(2.3)).x == floor(4.6)"]]
    ) == [1]


def test_program_cannot_replace_a_module_of_the_tests(code: Code) -> None:
    program = "import math\nmath.isclose = lambda *a, **k: True\ndef f(): return 1.0"
    assert code(completions=[fenced(program)], tests=[["assert math.isclose(f(), 2.0)"]]) == [0.0]


def test_reward_keeps_the_contract(code: Code) -> None:
    programs = [fenced(ADD), "none", fenced("def add(a, b): return a")]
    tests = [["assert add(1, 0) == 1", "assert add(1, 1) == 2"]] * 3
    assert check_reward(code, prompts=["?"] * 3, completions=programs, tests=tests) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```py\na\n```\n```python\nb\n```\nso", "b\n"),
        ("```python\na\n```\noutput:\n```text\nb\n```", "a\n"),
        ("```python\na", None),
        ("<think>```python\na\n```</think> no", None),
        ("<think>```python\na</think>```Python\nb\n```", "b\n"),
        ("```python\na\n```<|endoftext|>```python\nb\n```", "a\n"),
        ("a", None),
        ("```" + " a" * 500_000 + "`", None),
        ("```python\n\n```", None),
        ("```python\n" + "a" * 200_000 + "\n```", None),
    ],
)
def test_last_closed_block_of_the_answer_is_the_program(completion: str, program: str | None) -> None:
    assert extract_program(completion) == program


def test_total_time_ends_many_slow_tests() -> None:
    try:
        hurried = Code(timeout_s=2.0, total_timeout_s=3.0)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    program = "import time\ndef f(): time.sleep(0.5)"
    started = time.monotonic()
    values = hurried(
        completions=[fenced(program)] * 2,
        tests=[["assert f() is None"] * 100, None],
        entry_point=[None, "f"],
        cases=[None, [{"input": [], "output": None}] * 100],
    )
    assert all(value is not None and 0 < value < 0.08 for value in values)
    assert time.monotonic() - started < 15


def test_columns_may_be_written_as_json() -> None:
    assert read_tests({"tests": '["assert a", "assert b"]'}) == CodeTests(tests=("assert a", "assert b"))
    assert read_tests({"tests": "assert a"}) == CodeTests(tests=("assert a",))
    assert read_tests({"inputs": "5", "outputs": "6"}) == CodeTests(runs=(("5", "6"),))
    assert read_tests({"inputs": ["5"], "outputs": []}) is None
    assert read_tests({"cases": [[[1], 2]]}) is None, "no entry point"


@pytest.mark.parametrize(
    ("given", "wanted", "is_equal"),
    [
        (1, 1, True),
        (1, True, False),
        (True, True, True),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        (2.0, 2, True),
        (0.1 + 0.2, 0.3, True),
        (1, 1.1, False),
        ((1, [2]), [1, [2]], True),
        ([1], [1, 2], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({1: 2}, {"1": 2}, False),
        ({1, 2}, [1, 2], False),
        (b"x", "x", False),
        (float("nan"), float("nan"), True),
        (2**9000, 2**9000, True),
        (2**9000, 1.5, False),
        ("", [], False),
    ],
)
def test_values_are_compared_with_their_types(given: Any, wanted: Any, is_equal: bool) -> None:
    assert equals(to_data(given), wanted) is is_equal


def test_hostile_data_is_equal_to_nothing() -> None:
    for data in ({}, {"a": 1, "b": 2}, {"tuple": 3}, {"dict": [[1]]}, {"dict": "ab"}, {"kept": 0}, {"int": 5}):
        assert not equals(data, [1]) and not equals(data, {"a": 1}) and not equals(data, 5)


def test_outputs_are_compared_word_by_word() -> None:
    assert is_same_output("1  2 \n3\n\n", "1 2\n3")
    assert is_same_output("0.3333333", "0.3333334") and not is_same_output("3", "4")
    assert not is_same_output("1 2 3", "1 2\n3")


def test_missing_bubblewrap_is_told_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailableError, match=r"not installed.*apt-get install bubblewrap.*sandbox_url"):
        Code()


def test_unusable_interpreter_is_told_with_the_reason() -> None:
    if sandbox.shutil.which("bwrap") is None:
        pytest.skip(f"needs bubblewrap: {sandbox.INSTALL_LINE}")
    with pytest.raises(SandboxUnavailableError, match="/usr/bin/true: a sandbox did not start"):
        Sandbox(python="/usr/bin/true")


def test_unsafe_mode_works_only_on_request_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    unsafe = Code(allow_unsafe_local=True)
    assert "network access" in caplog.text
    assert unsafe(completions=[fenced(ADD)], tests=[["assert add(1, 2) == 3"]]) == [1.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"score": "half"},
        {"timeout_s": 0},
        {"timeout_s": 9, "total_timeout_s": 5},
        {"num_parallel": 0},
        {"sandbox_url": "localhost:80"},
        {"sandbox_url": "http://localhost", "allow_unsafe_local": True},
    ],
)
def test_wrong_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|is fraction|one place"):
        Code(**settings)
