"""The loop: a run that is killed ends as if it had not been, and rewarded tokens become likely."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import yaml

from unigrpo.errors import UserError
from unigrpo.models.opening import open_policy
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.checkpoint import latest_checkpoint
from unigrpo.runs.directory import locked
from unigrpo.runs.metrics import read_metrics
from unigrpo.train import resume, train

REWARD = """
def early_letters(*, prompts, completions):
    return [sum(character in "abcdefghijklm" for character in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    make_policy(folder / "policy")
    (folder / "my_rewards.py").write_text(REWARD)
    recipe = {
        "name": "small",
        "num_steps": 8,
        "group_size": 4,
        "num_threads": 1,
        "policy": {"path": "policy", "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "tasks": {
            "reason": {
                "data": {"use": "unigrpo.quickstart.sums:Sums"},
                "prompts_per_step": 2,
                "sampling": {"completion_length": 8, "num_denoising_steps": 4},
            }
        },
        "rewards": {"letters": {"use": "my_rewards.py:early_letters"}},
        "learner": {"lr": 0.01, "lr_schedule": "constant"},
        "evaluate": {"num_prompts": 8},
        "checkpoint": {"every": 2},
        "tracking": {"use": ["jsonl"], "rollouts_every": 4},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "small.yaml"


def adapter_hash(run_dir):
    (path,) = (run_dir / "checkpoints" / "step_000008").rglob("adapter_model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def comparable(record):
    return {name: value for name, value in record.items() if not name.startswith(("timing_s/", "perf/", "memory/"))}


@pytest.fixture(scope="module")
def whole_run(recipe_path, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, train(load_recipe(recipe_path), run_dir)


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "unigrpo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def moments(run_dir):
    """Return what says that a run is at each moment at which it is killed."""
    checkpoints = run_dir / "checkpoints"
    return [
        lambda: (run_dir / "eval_before").exists(),
        lambda: len(read_metrics(run_dir)) >= 1,
        lambda: any(checkpoints.glob(".writing-*")) or (checkpoints / "step_000002").exists(),
        lambda: len(read_metrics(run_dir)) >= 5,
        lambda: (run_dir / "eval_after" / "metrics.json").exists(),
    ]


def fork_and_kill(work, is_time, timeout_s=120):
    """Run in a process that is killed when it is time, unless it ends before; return its exit code."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    deadline, ended = time.monotonic() + timeout_s, 0
    while not is_time() and not ended:
        assert time.monotonic() < deadline, "the run did not get to the moment of its kill"
        time.sleep(0.005)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def run_with_kills(recipe_path, run_dir):
    """Start a run, kill it at each moment and go on with it; then let it end."""
    recipe = load_recipe(recipe_path)
    open_policy(recipe.policy, recipe.lora, recipe.seed)  # which imports most, once for all
    for number, moment in enumerate(moments(run_dir)):
        work = partial(resume, run_dir) if number else partial(train, recipe, run_dir)
        assert fork_and_kill(work, moment) == -signal.SIGKILL
    (run_dir / "summary.json").unlink(missing_ok=True)  # the last kill may come after it
    resume(run_dir)


def test_a_run_killed_five_times_ends_with_the_same_adapter_and_metrics(recipe_path, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    # In a process with one thread, which forks: each of the killed ones would import everything anew.
    arguments = [sys.executable, __file__, recipe_path, run_dir]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    expected_dir, expected = whole_run
    assert adapter_hash(run_dir) == adapter_hash(expected_dir)
    assert [comparable(r) for r in read_metrics(run_dir)] == [comparable(r) for r in read_metrics(expected_dir)]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["eval_before"] == expected["eval_before"]
    assert summary["eval_after"] == expected["eval_after"]
    assert summary["status"] == "finished"


def test_all_weights_learn_the_rewarded_letters_against_a_frozen_reference(recipe_path, tmp_path):
    changes = [
        "num_steps=15",
        "tasks.reason.prompts_per_step=4",
        "group_size=8",
        "lora.enabled=false",
        "learner.lr=0.002",
    ]
    recipe = load_recipe(recipe_path, [*changes, "evaluate.num_prompts=32"])
    summary = train(recipe, tmp_path / "run")
    before, after = (summary[name]["eval/reason/reward"] for name in ("eval_before", "eval_after"))
    assert after > before + 0.2


def test_a_finished_run_keeps_its_records(whole_run):
    run_dir, summary = whole_run
    records = read_metrics(run_dir)
    assert [record["step"] for record in records] == list(range(1, 9))
    assert summary["num_steps"] == 8
    assert records[0]["kl"] < records[-1]["kl"]
    assert {"reward/letters/cache_hit_rate", "alarm/saturation"} <= set(records[-1])
    assert {"reward", "reward_std", "rewards/letters/mean", "tasks/reason/reward", "entropy", "grad_norm"} <= set(
        records[0]
    )
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_000006", "step_000008"]


def test_resuming_a_finished_run_returns_its_summary_and_changes_nothing(whole_run):
    run_dir, summary = whole_run
    before = sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*"))
    assert resume(run_dir) == summary
    assert sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*")) == before


def test_a_run_that_fails_before_its_first_result_leaves_nothing_and_can_be_tried_again(recipe_path, tmp_path):
    one_value = tmp_path / "one_value.py"
    one_value.write_text("def reward(*, prompts, completions):\n    return [1.0]\n")
    bad = load_recipe(recipe_path, [f"rewards.letters.use={one_value}:reward", "evaluate.enabled=false"])
    for _ in range(2):
        with pytest.raises(Exception, match="letters"):
            train(bad, tmp_path / "run")
        assert not any((tmp_path / "run").iterdir())


def test_two_processes_do_not_share_a_run_directory(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} works in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_directory_in_use_is_refused_and_left_alone(recipe_path, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train(load_recipe(recipe_path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_what_is_no_run_says_so(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        resume(tmp_path)


def test_an_interrupted_run_saves_its_step_and_can_go_on(recipe_path, tmp_path, whole_run):
    run_dir = tmp_path / "run"
    process = start("train", recipe_path, "--out", run_dir)
    deadline = time.monotonic() + 120
    while len(read_metrics(run_dir)) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output.decode()
    assert latest_checkpoint(run_dir).step >= 3
    resume(run_dir)
    assert adapter_hash(run_dir) == adapter_hash(whole_run[0])


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(recipe_path, tmp_path, whole_run):
    run_dir = tmp_path / "run"
    train(load_recipe(recipe_path, ["num_steps=6", "evaluate.enabled=false"]), run_dir)
    (newest,) = (run_dir / "checkpoints" / "step_000006").rglob("adapter_model.safetensors")
    newest.write_bytes(newest.read_bytes()[:-10])
    text = (run_dir / "recipe.yaml").read_text().replace("num_steps: 6", "num_steps: 8")
    (run_dir / "recipe.yaml").write_text(text)
    resume(run_dir)
    assert adapter_hash(run_dir) == adapter_hash(whole_run[0])


def test_the_recipe_of_a_run_is_the_whole_resolved_one(whole_run, recipe_path):
    assert load_recipe(Path(whole_run[0]) / "recipe.yaml") == load_recipe(recipe_path)


if __name__ == "__main__":
    run_with_kills(Path(sys.argv[1]), Path(sys.argv[2]))
