"""Every command that the documentation shows runs, with a tiny policy and a tiny run in place of its placeholders."""

import re
import runpy
import shlex
import subprocess
import sys
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest

from unigrpo.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"(?:\.venv/bin/)?(?:unigrpo|python|make)"


def commands() -> list[str]:
    """Return every command of the pages, once each, without comments and with continued lines joined."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = re.sub(r"\\\n\s+", "", page.read_text())
        lines = re.findall(rf"^(?:    )?({PROGRAMS} .*)$", text, re.MULTILINE)
        inline = [" ".join(code.split()) for code in re.findall(rf"`({PROGRAMS} [^`]+)`", text)]
        found |= dict.fromkeys(re.sub(r"\s+#.*$", "", line).strip() for line in [*lines, *inline])
    return list(found)


TRAINED = "unigrpo train quickstart --out {run} {small}"
RUNS = {
    "unigrpo check RECIPE [key.path=value ...]": "unigrpo check quickstart num_steps=2",
    "unigrpo train RECIPE --out DIR [key.path=value ...]": TRAINED,
    "unigrpo resume DIR [key.path=value ...]": "unigrpo resume {run}",
    "unigrpo eval RECIPE|DIR": "unigrpo eval {run} evaluate.num_prompts=2",
    "unigrpo sample MODEL --adapter DIR --task imagine --image-tokenizer DIR "
    '--prompt "a red circle" --out picture.png': (
        "unigrpo sample asset:tiny_policy --adapter {run} --task imagine --image-tokenizer asset:tiny_magvit "
        "--image-size 64 --length 16 --steps 2 --guidance 0 --prompt 'a red circle' --out {tmp}/a.png"
    ),
    "unigrpo score RECIPE FILE.jsonl": "unigrpo score quickstart {items}",
    "unigrpo score REWARDS FILE.jsonl": "unigrpo score unigrpo.rewards.correctness:Correctness {items}",
    "unigrpo report DIR...": "unigrpo report {run} --out {tmp}/report.html",
    "unigrpo inspect MODEL": "unigrpo inspect asset:tiny_policy",
    "unigrpo make-tiny FAMILY DIR": "unigrpo make-tiny llada {tmp}/tiny",
    "unigrpo make-tiny FAMILY DIR --release SIZE": (
        "unigrpo make-tiny llada {tmp}/release --release 8b --layers 1 --width 64 --vocabulary 512"
    ),
    "unigrpo export DIR --out ADAPTER": "unigrpo export {run} --out {tmp}/adapter",
    "unigrpo sft": "unigrpo sft tiny_sft policy.path=asset:tiny_policy num_steps=1 --out {tmp}/sft",
    "unigrpo --help": "unigrpo --help",
    "unigrpo check": "unigrpo check quickstart",
    "unigrpo check quickstart": "unigrpo check quickstart",
    ".venv/bin/unigrpo train quickstart": TRAINED,
    "unigrpo train quickstart num_steps=8 seed=0": TRAINED,
    ".venv/bin/python -m pytest tests/test_x.py": "python -m pytest tests/test_lru.py -p no:cacheprovider",
    "python docs/generate/family_docs.py > docs/families.md": "python docs/generate/family_docs.py",
    "python docs/generate/reward_docs.py > docs/rewards.md": "python docs/generate/reward_docs.py",
    "python -I -S": "python -I -S -c pass",
    "make quickstart": "make -n quickstart",
    "make test": "make -n test",
    "make lint": "make -n lint",
    "python tests/benchmarks/learner.py": "python tests/benchmarks/learner.py --help",
    "python tests/benchmarks/quickstart.py --seeds 0 1 2 --controls 0 1 2 --out runs/table num_threads=1": (
        "python tests/benchmarks/quickstart.py --seeds 0 --controls --out {tmp}/table {small}"
    ),
    "python tests/benchmarks/released_shapes.py --device cuda --markdown FILE": (
        "python tests/benchmarks/released_shapes.py --help"
    ),
    "python tests/benchmarks/rewards.py --markdown docs/rewards_throughput.md": (
        "python tests/benchmarks/rewards.py --toy --num-items 2 --only length --markdown {tmp}/throughput.md"
    ),
    "python tests/benchmarks/sandbox.py --num 30": "python tests/benchmarks/sandbox.py --num 1",
}
"""What is run for each command: itself where nothing is said. ``make`` says what it would do, and two benchmarks what
they take: that of the learner needs minutes, and `test_released_shapes` runs the other."""
SMALL = (
    "num_steps=1 group_size=2 num_threads=1 evaluate.num_prompts=2 learner.num_inner_updates=1 "
    "tasks.reason.prompts_per_step=1 tasks.understand.prompts_per_step=1 tasks.imagine.prompts_per_step=1 "
    "tasks.reason.sampling.num_denoising_steps=2 tasks.understand.sampling.num_denoising_steps=2 "
    "tasks.imagine.sampling.num_denoising_steps=2 "
    "rewards.clip_alignment.use=unigrpo.rewards.jpeg_size:JpegSize rewards.clip_alignment.arguments={}"
)
"""The one reward that loads a model is left to `unigrpo score`."""
QUICK = ("--help", "check", "make -n", "inspect", "-I -S")


@cache
def run(command: str) -> None:
    """Run a command, once each: the program and scripts in this process, which has imported what they need."""
    program, *arguments = shlex.split(command)
    if program == "unigrpo":
        with chdir(ROOT):
            assert app.run(arguments) == 0, command
    elif program == "python" and arguments[0].endswith(".py"):
        script(ROOT / arguments[0], arguments[1:])
    else:
        start = {"python": sys.executable, "make": "make"}[program]
        done = subprocess.run([start, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"


def script(path: Path, arguments: list[str]) -> None:
    """Run a script as Python does, with its folder on the path."""
    with chdir(ROOT), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *arguments])
        patch.syspath_prepend(path.parent)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            assert not end.code, path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run of one step, a file of completions, and a folder to write into."""
    tmp = tmp_path_factory.mktemp("commands")
    (tmp / "items.jsonl").write_text('{"task": "reason", "prompt": "1+1", "completion": "2", "answer": "2"}\n')
    found = {"tmp": str(tmp), "run": str(tmp / "run"), "items": str(tmp / "items.jsonl"), "small": SMALL}
    run(TRAINED.format(**found))
    return found


def test_every_command_is_known_and_no_other() -> None:
    itself = [command for command in commands() if command.startswith("unigrpo sample asset:")]
    assert sorted(commands()) == sorted([*RUNS, *itself])


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if any(word in RUNS.get(command, "") for word in QUICK) else pytest.mark.slow)
        for command in commands()
    ],
)
def test_command_of_the_documentation_runs(command: str, places: dict[str, str]) -> None:
    shown = RUNS.get(command, command.replace("--out picture.png", "--out {tmp}/picture.png"))
    run(shown.format(**places))
