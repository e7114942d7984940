"""Programs that cheat or attack: none earns a point, none harms, all are gone afterwards."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_boxes import boxed_code, boxes, fenced, tried

from unigrpo.rewards.code import Code

SECRET = "secret-7391"


@pytest.fixture(scope="module")
def code() -> Code:
    return boxed_code()


@pytest.fixture(autouse=True)
def _all_processes_end() -> Iterator[None]:
    yield
    end = time.monotonic() + 5
    while left := boxes():
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.05)


def all_kinds(code: Code, function: str, script: str) -> list[float | None]:
    """Score a program by test lines, by cases and by its output: each wants the secret."""
    return code(
        completions=[fenced(function), fenced(function), fenced(script)],
        tests=[[f"assert f(3) == {SECRET!r}", f"assert f(4) == {SECRET!r}"], None, None],
        entry_point=[None, "f", None],
        cases=[None, [{"input": [3], "output": SECRET}], None],
        inputs=[None, None, ["3\n"]],
        outputs=[None, None, [SECRET]],
    )


FORGERY = r"""
import json, os
lines = []
passed = [{"passed": True, "index": n, "reason": ""} for n in (0, 1)]
replies = [{"reply": reply} for reply in (True, {"value": True, "changed": {}}, {"output": "", "problem": ""})]
for nonce in ("", "0" * 32):
    for facts in [*passed, *replies, {"done": True}, {"ready": True}]:
        lines.append(json.dumps({"nonce": nonce, **facts}))
text = "\nOK\nPASSED\n1.0\n" + "\n".join(lines) + "\n"
print(text, flush=True)
for descriptor in range(64):
    try:
        os.write(descriptor, text.encode())
    except OSError:
        pass
def f(n):
    return True
"""
SEARCH = r"""
import gc, os, re, sys
pattern = re.compile("secret" + "-[0-9]{4}")
def find():
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if hit := pattern.search(str(value)):
                return hit[0]
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)) and (hit := pattern.search(repr(thing)[:10000])):
            return hit[0]
    for pid in os.listdir("/proc"):
        for name in ("cmdline", "environ", "maps", "task/%s/comm" % pid):
            try:
                if pid.isdigit() and (hit := pattern.search(open(f"/proc/{pid}/{name}", errors="replace").read())):
                    return hit[0]
            except OSError:
                pass
        try:
            spans = [line.split()[0].split("-") for line in open(f"/proc/{pid}/maps") if " rw" in line]
            with open(f"/proc/{pid}/mem", "rb") as memory:
                for low, high in spans:
                    memory.seek(int(low, 16))
                    for hit in re.finditer(pattern.pattern.encode(), memory.read(int(high, 16) - int(low, 16))):
                        return hit[0].decode()
        except (OSError, ValueError, OverflowError):
            pass
    return "nothing"
def f(n):
    return find()
"""
EQUAL_TO_ALL = """
class Yes(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    __class__ = property(lambda self: str)
class Plain:
    __eq__ = __contains__ = lambda self, other: True
    __class__ = str
def f(n):
    return Plain() if n == 3 else Yes("x")
"""
PATCHING = """
import builtins, gc, json, sys, types
class Never(Exception): pass
builtins.AssertionError = Never
builtins.isinstance = lambda *a: True
builtins.all = lambda *a: True
sys.modules["builtins"].str.__eq__ if True else None
for module in list(sys.modules.values()):
    for name in list(getattr(module, "__dict__", {})):
        if name in ("equals", "is_same_output", "encode", "decode", "_is_close", "Trap"):
            setattr(module, name, lambda *a, **k: True)
for thing in gc.get_objects():
    if isinstance(thing, types.FunctionType) and thing.__name__ in ("report", "_run_test", "count"):
        thing.__code__ = (lambda *a, **k: True).__code__
def f(n):
    return True
print(True)
"""
CHEATS = {
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "sys.exit(0) when called": "import sys\ndef f(n): sys.exit(0)\nf(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(0) when called": "import os\ndef f(n): os._exit(0)",
    "keyboard interrupt": "def f(n): raise KeyboardInterrupt\nf(0)",
    "markers on every descriptor": FORGERY,
    "search of memory": SEARCH + "print(find())",
    "equal to all": EQUAL_TO_ALL + "print(f(3))",
    "patched built-ins": PATCHING,
    "kill of the parent": "import os\ndef f(n):\n    os.kill(os.getppid(), 9)\n    return True\nprint(f(0))",
    "kill of the first process": "import os\nfor n in range(1, 65):\n    os.kill(1, n)",
    "kill of all": "import os\nos.kill(-1, 9)",
    "stopped parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "nothing at all": "",
    "a syntax error": "def f(",
    "deep nesting": "def f(n):\n    x = []\n    for _ in range(100000): x = [x]\n    return x\nprint('[' * 100000)",
    "a cycle": "x = []\nx.append(x)\ndef f(n): return x",
    "endless data": "def f(n): return 'x' * 10**8\nprint('x' * 10**8)",
    "surrogates": "def f(n): return '\\ud800'\nprint('\\udcff')",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_earns_nothing(code: Code, name: str) -> None:
    assert all_kinds(code, CHEATS[name], CHEATS[name]) == [0.0, 0.0, 0.0]


def test_search_of_memory_finds_what_is_there(code: Code) -> None:
    planted = SEARCH + "\nplanted = ['-'.join(['secret', '1234'])]\n"
    assert code(completions=[fenced(planted)], tests=[["assert f(0) == 'secret-1234'"]]) == [1.0]


HANGS = {
    "sleep": "import time\ntime.sleep(1000)",
    "sleep when called": "import time\ndef f(n):\n    time.sleep(1000)\nif __name__ == '__main__': f(0)",
    "endless loop that catches all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "signals ignored": "import signal\nfor n in (1, 2, 3, 13, 14, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\n"
    "while True: pass",
}


@pytest.mark.parametrize("name", HANGS)
def test_hang_ends_in_time_and_is_counted(name: str, code: Code) -> None:
    logged: list[tuple[str, float]] = []
    started = time.monotonic()
    values = code(
        completions=[fenced(HANGS[name])] * 2,
        tests=[["assert f(0) == 1"], None],
        inputs=[None, [""]],
        outputs=[None, ["1"]],
        log_metric=lambda metric, value: logged.append((metric, value)),
    )
    assert values == [0.0, 0.0]
    assert time.monotonic() - started < 20
    assert logged.count(("timeout_fraction", 1.0)) == 2


def test_fork_bomb_stays_small_and_ends(code: Code) -> None:
    largest = 0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not is_over.is_set():
            largest = max(largest, len(boxes()))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    values = all_kinds(code, bomb, bomb)
    is_over.set()
    watcher.join()
    assert values == [0.0, 0.0, 0.0]
    assert 32 < largest <= 3 * 36 + 3, "three boxes of at most 32 counted processes each, and the judge's"


def test_harmless_action_works_so_that_blocked_means_something(code: Code) -> None:
    assert tried(code, "open('/tmp/x', 'w').write('y')\nassert open('/tmp/x').read() == 'y'") == "done"


def test_three_gib_are_refused(code: Code) -> None:
    assert tried(code, "x = bytearray(3 << 30)") == "blocked"


def test_disk_is_small(code: Code) -> None:
    fill = "for n in range(20):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(bytes(10 << 20))"
    assert tried(code, fill) == "blocked"


def test_network_is_not_there(code: Code) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert tried(code, f"socket.create_connection(('127.0.0.1', {port}), 1)") == "blocked"
        assert tried(code, "socket.create_connection(('192.0.2.1', 80), 1)") == "blocked"
        with pytest.raises(TimeoutError):
            server.accept()


def test_home_and_the_files_of_this_run_are_not_there(code: Code, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    os.chmod(tmp_path, 0o755)
    os.chmod(secret, 0o644)
    paths = [
        str(path) for path in (Path.home(), secret, Path(__file__), Path("/etc/passwd"), Path("/root")) if path.exists()
    ]
    assert str(secret) in paths
    assert tried(code, f"if any(map(os.path.exists, {paths!r})): return 'done'\nraise OSError") == "blocked"


def test_nothing_can_be_written_outside(code: Code, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    name = f"written-by-a-program-{os.getpid()}"
    before = sorted(os.listdir(Path.home()))
    folders = ["/", "/usr", "/usr/lib", "/dev", "/dev/shm", "/proc", "/etc", "/var/tmp", str(tmp_path)]
    action = f"for folder in {folders!r}:\n    try:\n        open(folder + '/{name}', 'w')\n        return 'done'\n"
    assert tried(code, f"{action}    except OSError:\n        pass\nraise OSError") == "blocked"
    assert not any(os.path.exists(f"{folder}/{name}") for folder in folders)
    assert tried(code, f"open('/tmp/{name}', 'w')") == "done"
    assert not os.path.exists(f"/tmp/{name}"), "its /tmp is not ours"
    assert sorted(os.listdir(Path.home())) == before


def test_other_processes_are_not_seen(code: Code) -> None:
    few = "if len([p for p in os.listdir('/proc') if p.isdigit()]) > 4: return 'done'\nraise OSError"
    assert tried(code, few) == "blocked"


def test_what_a_right_program_leaves_running_is_ended(code: Code) -> None:
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)\ndef f(n): return n"
    )
    assert code(completions=[fenced(daemon)], tests=[["assert f(3) == 3"]]) == [1.0]


def test_one_attack_leaves_its_neighbors_alone(code: Code) -> None:
    right = fenced("def f(n): return n + 1")
    attacks = [fenced(CHEATS["kill of all"]), fenced(HANGS["sleep"]), fenced(CHEATS["endless data"])]
    values = code(completions=[right, *attacks, right], tests=[["assert f(1) == 2"]] * 5)
    assert values == [1.0, 0.0, 0.0, 0.0, 1.0]
