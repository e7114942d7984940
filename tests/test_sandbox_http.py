"""Programs on a server: a small one of ours that runs them for real, and replies that no good server gives."""

import base64
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unigrpo.rewards.code import Code
from unigrpo.rewards.sandboxing.code_runs import Clock
from unigrpo.rewards.sandboxing.code_tests import CodeTests
from unigrpo.rewards.sandboxing.sandbox_http import RemoteSandbox, SandboxServerError

ADD = "def add(a, b):\n    return a + b"
SCRIPT = CodeTests(runs=(("1 2\n", "3\n"),))
TESTS = CodeTests(tests=("assert add(1, 2) == 3", "assert add(2, 2) == 4"))
CASES = CodeTests(entry_point="add", cases=(([1, 1], 2), ([1, 2], 3)))


class Server(ThreadingHTTPServer):
    """Speaks ``/run_code``; ``mood`` is how."""

    daemon_threads = True
    mood = "good"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.left_over: list[str] = []
        self.reports: list[str] = []
        """What the mood "forged" sends in the judge's place, between ready and done."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request | {"path": self.path})
        mood = self.server.mood
        if mood == "busy at first":
            mood = "busy" if len(self.server.requests) < 3 else "good"
        if mood == "forged":
            nonce = re.search(r"'nonce': '([0-9a-f]{32})'", request["code"])
            assert nonce is not None
            told = ['{"ready": true}', *self.server.reports, '{"done": true}']
            REPLIES["forged"] = finished("".join(f"{nonce[1]} {report}\n" for report in told))
        if mood == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b" ")
                time.sleep(0.1)
            return
        status = {"busy": 503, "broken": 500, "unknown": 404}.get(mood, 200)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(REPLIES[mood] if mood in REPLIES else json.dumps(self.run(request)).encode())

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a program as the real server does: a file in a folder of its own, its output as text."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.py"
            path.write_text(request["code"])
            Path(folder).chmod(0o755)
            result: dict[str, Any] = {"status": "Finished", "execution_time": 0.1}
            try:
                done = subprocess.run(
                    [sys.executable, str(path)],
                    input=request["stdin"],
                    capture_output=True,
                    text=True,
                    timeout=request["run_timeout"],
                    cwd=folder,
                    check=False,
                )
                result |= {"return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
            except subprocess.TimeoutExpired:
                result["status"] = "TimeLimitExceeded"
            self.server.left_over.extend(file.name for file in Path(folder).iterdir())
        is_good = result.get("return_code") == 0
        return {
            "status": "Success" if is_good else "Failed",
            "message": "",
            "compile_result": None,
            "run_result": result,
            "executor_pod_name": None,
            "files": {},
        }


def finished(stdout: Any) -> bytes:
    result = {"status": "Finished", "return_code": 0, "stdout": stdout}
    return json.dumps({"status": "Success", "message": "", "run_result": result}).encode()


REPLIES = {
    "not json": b"<html>hello</html>",
    "a list": b"[1]",
    "deep": b"[" * 100_000,
    "huge": b" " * (17 * 2**20),
    "no result": b'{"status": "Success"}',
    "own error": b'{"status": "SandboxError", "message": "no disk", "run_result": null}',
    "busy": b"later",
    "broken": b"oh",
    "unknown": b"what?",
    "stdout is a number": finished(3),
    "stdout is an object": finished({"text": "3"}),
    "no stdout": finished(None),
    "code is false": finished("3").replace(b'"return_code": 0', b'"return_code": false'),
    "passed, it says": finished('PASSED\n{"passed": true}\n' + base64.b64encode(b"x" * 99).decode()),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def remote(server: Server, *, total_s: float = 20.0, queue_s: float = 60.0) -> RemoteSandbox:
    return RemoteSandbox(server.url, clock=Clock(test_s=min(5.0, total_s), total_s=total_s), queue_s=queue_s)


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def test_reward_is_the_same_as_at_home_for_all_kinds_of_tests(server: Server) -> None:
    code = Code(sandbox_url=server.url + "/")
    script = "a, b = map(int, input().split())\nprint(a + b)"
    cases = [{"input": [1, 2], "output": 3}, {"input": [[1], [2]], "output": [1, 2]}, {"input": [0, 0], "output": 1}]
    values = code(
        completions=[fenced(ADD), fenced("def add(a, b): return 3"), fenced(ADD), fenced(script)],
        tests=[["assert add(1, 2) == 3", "assert add(2, 2) == 4"]] * 2 + [None, None],
        entry_point=[None, None, "add", None],
        cases=[None, None, cases, None],
        inputs=[None, None, None, ["1 2", "3 4"]],
        outputs=[None, None, None, ["3", "8"]],
    )
    assert values == [1.0, 0.5, pytest.approx(2 / 3), 0.5]
    assert {request["path"] for request in server.requests} == {"/run_code"}
    assert {request["language"] for request in server.requests} == {"python"}


def test_wanted_values_of_cases_and_scripts_never_travel(server: Server) -> None:
    sandbox = remote(server)
    sandbox.run(ADD, CodeTests(entry_point="add", cases=(([1, 2], "secret-7391"),)))
    sandbox.run(ADD, CodeTests(runs=(("1 2", "secret-7391"),)))
    assert len(server.requests) == 2
    assert "secret-7391" not in json.dumps(server.requests)


def test_file_with_the_test_lines_is_gone_before_the_program_runs(server: Server) -> None:
    verdict = remote(server).run(ADD, CodeTests(tests=("assert add(1, 2) == 3",)))
    assert (verdict.num_passed, server.left_over) == (1, [])


SEARCH = """
import os, re
def f():
    for pid in os.listdir("/proc"):
        for name in ("cmdline", "environ"):
            try:
                if pid.isdigit() and (hit := re.search("secret" + "-[0-9]+", open(f"/proc/{pid}/{name}").read())):
                    return hit[0]
            except OSError:
                pass
    try:
        open(f"/proc/{os.getppid()}/mem", "rb")
        return "secret" + "-7391"
    except OSError:
        return "nothing"
"""
CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "os exit": "import os\nos._exit(0)",
    "marker": "import os\nfor n in range(64):\n    try: os.write(n, b'\\n' + b'0' * 32 + b' {\"passed\": true}\\n')\n"
    "    except OSError: pass\nprint('PASSED')\ndef f(): return True",
    "parent's output": "import os\nopen(f'/proc/{os.getppid()}/fd/1', 'w').write('PASSED')\ndef f(): return 1",
    "search": SEARCH,
    "equal to all": "class A:\n    def __eq__(self, other): return True\ndef f(): return A()",
    "sleep": "import time\ntime.sleep(100)",
    "kill of the parent": "import os\nos.kill(os.getppid(), 9)",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_earns_nothing_on_a_server(server: Server, name: str) -> None:
    sandbox = remote(server, total_s=4.0)
    assert sandbox.run(CHEATS[name], CodeTests(tests=("assert f() == 'secret-7391'",))).num_passed == 0
    assert sandbox.run(CHEATS[name], CodeTests(entry_point="f", cases=(([], "secret-73912"),))).num_passed == 0


def test_timeout_counts_against_the_program(server: Server) -> None:
    verdict = remote(server, total_s=1.0).run("while True: pass", CodeTests(runs=(("", "1"), ("", "2"))))
    assert (verdict.num_passed, verdict.num_tests, verdict.is_timeout) == (0, 2, True)
    assert len(server.requests) == 1, "the first one that hangs is enough"


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("not json", "not JSON"),
        ("a list", "sent a list"),
        ("deep", "not JSON"),
        ("huge", "sent more than"),
        ("no result", "could not run a program"),
        ("own error", "SandboxError.*no disk"),
        ("unknown", "answered 404: what"),
    ],
)
def test_bad_reply_is_an_error_of_the_server_not_of_the_program(server: Server, mood: str, message: str) -> None:
    server.mood = mood
    with pytest.raises(SandboxServerError, match=message):
        remote(server).run(ADD, CodeTests(tests=("assert add(1, 2) == 3",)) if mood == "huge" else SCRIPT)
    assert len(server.requests) == 1


def test_program_cannot_make_a_reply_too_long_to_read(server: Server) -> None:
    printing = remote(server).run("print('x' * (20 << 20))", CodeTests(runs=(("", "x"), ("", "y"))))
    assert (printing.num_passed, len(server.requests)) == (0, 1)
    cases = CodeTests(entry_point="f", cases=(([1], 1), *[([2], 2)] * 6))
    assert remote(server).run("def f(n): return 1 if n == 1 else '\"' * (3 << 20)", cases).num_passed == 1


def test_reply_without_the_wanted_output_or_nonce_is_no_point(server: Server) -> None:
    server.mood = "passed, it says"
    assert remote(server).run(ADD, SCRIPT).num_passed == 0
    with pytest.raises(SandboxServerError, match="judge did not start"):
        remote(server).run(ADD, TESTS)


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("stdout is a number", "sent stdout 3; wanted a text"),
        ("stdout is an object", "sent stdout {'text': '3'}; wanted a text"),
        ("no stdout", "sent stdout None; wanted a text"),
    ],
)
@pytest.mark.parametrize("task", [SCRIPT, TESTS], ids=["script", "tests"])
def test_output_that_is_no_text_is_an_error_of_the_server(
    server: Server, mood: str, message: str, task: CodeTests
) -> None:
    server.mood = mood
    with pytest.raises(SandboxServerError, match=message):
        remote(server).run(ADD, task)


def test_exit_code_that_is_no_number_is_an_error_of_the_server(server: Server) -> None:
    server.mood = "code is false"
    with pytest.raises(SandboxServerError, match="sent return_code False; wanted a number"):
        remote(server).run(ADD, SCRIPT)


@pytest.mark.parametrize("index", ["0", "1"])
@pytest.mark.parametrize(("task", "said"), [(CASES, '"value": 2'), (TESTS, '"passed": true')], ids=["cases", "tests"])
def test_report_of_one_test_counts_once(server: Server, task: CodeTests, said: str, index: str) -> None:
    server.mood = "forged"
    report = f'{{{said}, "index": {index}}}'
    server.reports = [report]
    assert remote(server).run(ADD, task).num_passed == int(said == '"passed": true' or index == "0")
    server.reports = [report] * 50
    with pytest.raises(SandboxServerError, match=f"reports test {index} twice; wanted one report a test"):
        remote(server).run(ADD, task)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("5", "sent the report 5; wanted an object"),
        ("[" * 80 + "]" * 80, r"sent the report \[\[.*; wanted an object"),
        ('{"value": 1, "index": 99}', "reports test 99 of 2; wanted 0 to 1"),
        ('{"value": 3, "index": -1}', "reports test -1 of 2; wanted 0 to 1"),
        ('{"value": 1, "index": true}', "reports test True of 2"),
        ('{"value": 1, "index": "0"}', "reports test '0' of 2"),
        ('{"value": 1, "index": 0.0}', r"reports test 0\.0 of 2"),
        ('{"value": 1}', "reports test None of 2"),
        ('{"raised": "x"}', "reports test None of 2"),
        ('{"passed": true, "index": 0}', "wanted index and value or raised"),
        ('{"happy": true}', "reports {'happy': True}; wanted index and value or raised"),
    ],
)
def test_report_that_no_judge_makes_is_an_error_that_shows_it(server: Server, report: str, message: str) -> None:
    server.mood, server.reports = "forged", [report]
    with pytest.raises(SandboxServerError, match=message):
        remote(server).run(ADD, CASES)


@pytest.mark.parametrize(
    "report", ['{"passed": 1, "index": 0}', '{"value": 1, "index": 0}', '{"raised": "", "index": 0}']
)
def test_report_on_a_test_line_says_true_or_false(server: Server, report: str) -> None:
    server.mood, server.reports = "forged", [report]
    with pytest.raises(SandboxServerError, match="wanted index and passed"):
        remote(server).run(ADD, TESTS)


def test_busy_server_is_asked_again_but_not_for_ever(server: Server) -> None:
    server.mood = "busy at first"
    assert remote(server).run("print(3)", SCRIPT).num_passed == 1
    assert len(server.requests) == 3
    server.mood = "broken"
    with pytest.raises(SandboxServerError, match="answered 500"):
        remote(server).run(ADD, SCRIPT)
    assert len(server.requests) == 6


def test_reply_that_drips_ends_at_the_total_deadline(server: Server) -> None:
    server.mood = "drip"
    started = time.monotonic()
    with pytest.raises(SandboxServerError, match="no whole answer"):
        remote(server, total_s=0.5, queue_s=0.5).run(ADD, SCRIPT)
    assert time.monotonic() - started < 5


def test_server_that_is_down_is_named() -> None:
    sandbox = RemoteSandbox("http://127.0.0.1:9", clock=Clock(test_s=1, total_s=1), queue_s=1)
    with pytest.raises(SandboxServerError, match=r"127\.0\.0\.1:9 .*refused"):
        sandbox.run(ADD, SCRIPT)
