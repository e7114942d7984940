import asyncio
import gc
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.maths.guards import is_explosive, is_false_equation
from unigrpo.testing.conformance import check_reward

GOLDEN = Path(__file__).parent / "golden" / "math_pairs.jsonl"
ENDLESS = {234, 235, 237}
"""Integrals and nested sines of the golden pairs that the worker has to be stopped at."""


@pytest.fixture(scope="module")
def reward() -> Iterator[Correctness]:
    reward = Correctness()
    reward.start()
    yield reward
    reward.close()


def boxed(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


def value(reward: Correctness, completion: object, gold: object) -> float | None:
    return reward(prompts=["?"], completions=[completion], answer=[gold])[0]


def golden_text(pair: dict[str, object]) -> str:
    parts = pair.get("prediction_parts") or []
    return str(pair.get("prediction") or "".join(text * count for text, count in parts))  # type: ignore[attr-defined]


def cpu_seconds(worker: psutil.Process) -> float:
    """Return the CPU seconds of all children that have ended, and of a worker if it has not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = worker.cpu_times() if worker.is_running() else None
    return ended.ru_utime + ended.ru_stime + (times.user + times.system if times else 0.0)


def test_golden_pairs_are_judged_right_and_none_outlasts_its_deadline() -> None:
    """All definite pairs; the three that no algebra system ends are judged on a short deadline, to spare the suite."""
    pairs = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    patient, hurried = Correctness(deadline_s=40.0), Correctness(deadline_s=2.0)
    for each in (patient, hurried):
        each.start()
    wrong, late = [], []
    for pair in pairs:
        reward, deadline_s = (hurried, 2.0) if pair["id"] in ENDLESS else (patient, 40.0)
        reward.start()  # A worker that was killed is replaced at the cost of nobody's deadline.
        assert reward._child is not None
        worker = psutil.Process(reward._child.pid)
        start_s = cpu_seconds(worker)
        given = value(reward, golden_text(pair), pair["gold"])
        if cpu_seconds(worker) - start_s > deadline_s + 1.0:
            late.append(pair["id"])
        if not pair["policy"] and bool(given) != pair["expected"]:
            wrong.append(pair["id"])
    for each in (patient, hurried):
        each.close()
    assert (wrong, late) == ([], [])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("(2,12) \\cup (12,102)", "(2, 12) \\cup (12, 102)"),
        ("(12,102)", "(12, 102)"),
        ("x \\neq 3", "x != 3"),
        ("-2, 1", "1 \\text{ and } -2"),
        ("21,16,11", "21,16 or 11"),
        ("-2 \\le x \\le 7", "x \\in [-2,7]"),
    ],
)
def test_spellings_that_the_upstream_suite_found_missing(reward: Correctness, given: str, wanted: str) -> None:
    assert value(reward, boxed(given), wanted) == 1.0


def test_answers_are_taken_only_from_the_sources_asked_for() -> None:
    texts = {"box": boxed("5"), "tag": "<answer>5</answer>", "hashes": "#### 5", "text": "It is 5."}
    for source in ("box", "tag", "hashes"):
        reward = Correctness(sources=[source])  # type: ignore[list-item]
        assert {name: value(reward, text, "5") for name, text in texts.items()} == dict.fromkeys(texts, 0.0) | {
            source: 1.0
        }
    assert value(Correctness(sources=["box", "tag"]), texts["text"], "5") == 0.0
    assert value(Correctness(sources=["text"]), texts["text"], "5") == 1.0
    assert value(Correctness(), "<reasoning>5</reasoning>", "5") == 0.0
    with pytest.raises(ValueError, match="answer sources"):
        Correctness(sources=["boxed"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("completion", "gold", "expected"),
    [
        (boxed("42"), "6 * 7 = <<6*7=42>>42\n#### 42", 1.0),
        ("6 * 7 is\n#### 42", "#### 42", 1.0),
        (boxed("1,234"), "#### 1,234", 1.0),
        (boxed("18.0"), 18, 1.0),
        ([{"role": "assistant", "content": boxed("42")}], "42", 1.0),
        ("<think>blue?</think> Red.", "red", 1.0),
        ("<answer> red </answer>", "red", 1.0),
        ("The answer is red.", "red", 1.0),
        ("No.", "no", 1.0),
        ("<answer>on</answer>", "no", 0.0),
        ("The answer is (B).", "B", 1.0),
        ("<answer>der</answer>", "red", 0.0),
        (boxed(r"20\%"), "20", 1.0),
        (boxed("20"), r"20\%", 1.0),
        (boxed(r"x \in [0,1]"), "[0,1]", 1.0),
        (boxed("100 cm"), "100 m", 0.0),
        (boxed(r"\$3.50"), "3.5", 1.0),
        (boxed("x=5=6"), "6", 0.0),
        (boxed("5") + "<|endoftext|>" + boxed("6"), "5", 1.0),
        ("", "5", 0.0),
        (boxed("5"), None, None),
        (boxed("5"), " ", None),
    ],
)
def test_one_answer(reward: Correctness, completion: object, gold: object, expected: float | None) -> None:
    assert value(reward, completion, gold) == expected


def test_a_picture_has_no_answer(reward: Correctness) -> None:
    assert value(reward, Image.new("RGB", (2, 2)), "5") is None


def test_answers_must_be_as_many_as_completions(reward: Correctness) -> None:
    with pytest.raises(ValueError, match="2 completions and 1 answers"):
        reward(prompts=["?", "?"], completions=["a", "b"], answer=["5"])


def test_reward_keeps_its_contract(reward: Correctness) -> None:
    answers = ["5", r"\frac{1}{\sqrt{3}}", "7", "red"]
    completions = [boxed("5"), boxed(r"\frac{\sqrt{3}}{3}"), boxed("8"), "Red."]
    given = check_reward(reward, prompts=["?"] * 4, completions=completions, answer=answers)
    assert given == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "9^9^9^9",
        "9**9**9",
        "10^{10^{10}}",
        "(10^8)^(10^8)",
        "3^{1500000001}",
        "100000000!",
        "((5!)!)!",
        r"\sum_{k=1}^{10^{12}} \frac{1}{k}",
        r"\prod_{k=1}^{99999999} k",
        "(10^6)!",
    ],
)
def test_explosive_expressions_are_seen(text: str) -> None:
    assert is_explosive(text)


@pytest.mark.parametrize("text", ["2^{10}", "10^{-3}", "e^{x^2}", "10!", "x^{97}", r"\sum_{k=1}^{4} k", "2^{2005}"])
def test_ordinary_expressions_are_not_explosive(text: str) -> None:
    assert not is_explosive(text)


def test_false_equations_name_two_numbers() -> None:
    assert is_false_equation("1=2")
    assert is_false_equation("x = 5 = 6")
    assert not is_false_equation("a=b=c=5")
    assert not is_false_equation("0.5 = 1/2")


def test_a_hanging_comparison_is_wrong_after_the_deadline_and_the_rest_is_judged() -> None:
    reward = Correctness(deadline_s=1.5)
    reward.start()
    bomb = r"\int_0^{\infty} \frac{\sin(x^x)}{\ln(x+\cos x)} dx"
    completions = [boxed(r"\sqrt{25}"), boxed(bomb), boxed(r"\sqrt{36}")]
    start_s = time.perf_counter()
    assert reward(prompts=["?"] * 3, completions=completions, answer=["5", "1", "6"]) == [1.0, 0.0, 1.0]
    assert 1.5 < time.perf_counter() - start_s < 15.0
    assert reward.num_timeouts == 1
    reward.close()


def test_a_killed_worker_is_replaced(reward: Correctness) -> None:
    assert value(reward, boxed(r"\sqrt{49}"), "7") == 1.0
    for child in psutil.Process().children():
        if "math_worker" in " ".join(child.cmdline()):
            child.kill()
    assert value(reward, boxed(r"\sqrt{64}"), "8") == 1.0


def test_threads_and_event_loops_get_the_same(reward: Correctness) -> None:
    given: list[float | None] = []
    threads = [threading.Thread(target=lambda: given.append(value(reward, boxed(r"\sqrt{81}"), "9"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def in_a_loop() -> float | None:
        return value(reward, boxed(r"\sqrt{100}"), "10")

    assert [*given, asyncio.run(in_a_loop())] == [1.0] * 5


def test_nothing_is_left_behind_when_a_reward_is_dropped() -> None:
    reward = Correctness()
    assert value(reward, boxed(r"\sqrt{4}"), "2") == 1.0
    assert reward._child is not None
    pid = reward._child.pid
    del reward
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_a_script_without_a_main_guard_can_use_it_and_imports_no_sympy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from unigrpo.rewards.correctness import Correctness\n"
        r"values = Correctness()(prompts=['?'], completions=[r'\boxed{\sqrt{25}}'], answer=['5'])" + "\n"
        "print(values, 'sympy' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("[1.0] False False", 0), done.stderr
