"""Evaluation: the same prompts and noise each time, figures that follow from the rows, files that can be seen."""

import json
import statistics

import numpy as np
import pytest
import yaml
from PIL import Image

from unigrpo.evaluation.evaluate import evaluate, evaluate_run
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.directory import create_run_dir
from unigrpo.runs.run import open_run
from unigrpo.runs.summary import finish

REWARDS = """
def evenness(*, prompts, completions):
    return [len(text) % 2 for text in completions]


def blueness(*, prompts, completions):
    return [image.convert("RGB").resize((1, 1)).getpixel((0, 0))[2] / 255 for image in completions]
"""


def read_pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def task(name, **sampling):
    return {"data": {"use": f"unigrpo.quickstart.{name}"}, "prompts_per_step": 1, "sampling": sampling}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    make_policy(folder / "policy")
    (folder / "my_rewards.py").write_text(REWARDS)
    values = {
        "name": "three",
        "num_steps": 1,
        "group_size": 2,
        "num_threads": 1,
        "policy": {"path": "policy", "image_tokenizer": "asset:tiny_magvit", "image_size": 64, "dtype": "float32"},
        "lora": {"r": 2, "alpha": 4},
        "tasks": {
            "reason": task("sums:Sums", completion_length=6, num_denoising_steps=2),
            "understand": task("scenes:UnderstandScenes", completion_length=6, num_denoising_steps=2),
            "imagine": task("scenes:ImagineScenes", completion_length=16, num_denoising_steps=3, schedule="cosine"),
        },
        "rewards": {
            "even": {"use": "my_rewards.py:evenness", "tasks": ["reason", "understand"], "weight": 3.0},
            "blue": {"use": "my_rewards.py:blueness", "tasks": ["imagine"]},
        },
        "learner": {"lr": 0.001},
        "evaluate": {"num_prompts": 5, "accuracy": {"reason": "even"}},
        "tracking": {"use": ["jsonl"]},
    }
    (folder / "three.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(folder / "three.yaml")


@pytest.fixture(scope="module")
def opened(recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    create_run_dir(recipe, run_dir)
    with open_run(recipe, run_dir) as run:
        run.deliver()
        yield run, evaluate(run, "before")


def test_every_figure_follows_from_the_rows_on_disk(opened):
    run, metrics = opened
    rows = [json.loads(line) for line in (run.run_dir / "eval_before" / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 15
    for name in ("reason", "understand", "imagine"):
        values = [row["reward"] for row in rows if row["task"] == name]
        assert metrics[f"eval/{name}/n"] == 5
        assert metrics[f"eval/{name}/reward"] == pytest.approx(statistics.mean(values))
        assert metrics[f"eval/{name}/reward_se"] == pytest.approx(statistics.stdev(values) / 5**0.5)
    right = [row["greedy_rewards"]["even"] == 1 for row in rows if row["task"] == "reason"]
    assert metrics["eval/reason/accuracy"] == pytest.approx(statistics.mean(right))
    assert [row["greedy_passed"]["even"] for row in rows if row["task"] == "reason"] == right
    assert {row["passed"]["even"] for row in rows if row["task"] == "imagine"} == {None}
    assert "eval/imagine/accuracy" not in metrics


def test_rewards_of_other_tasks_do_not_enter(opened):
    _, metrics = opened
    assert "eval/reason/rewards/blue" not in metrics
    assert "eval/imagine/rewards/even" not in metrics


def test_the_same_policy_scores_the_same_again(opened):
    run, metrics = opened
    assert evaluate(run, "again") == metrics


def test_held_out_prompts_are_never_trained_on(opened):
    run, _ = opened
    rows = [json.loads(line) for line in (run.run_dir / "eval_before" / "scores.jsonl").read_text().splitlines()]
    held_out = {row["id"] for row in rows}
    trained = {source[index].id for source in run.prompts.values() for index in range(1000)}
    assert not held_out & trained


def test_samples_name_pictures_that_open(opened):
    run, _ = opened
    folder = run.run_dir / "eval_before"
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["task"] for sample in samples} == {"reason", "understand", "imagine"}
    for sample in samples:
        name = {"imagine": sample["image"], "understand": sample["prompt_image"], "reason": None}[sample["task"]]
        if name is not None:
            assert read_pixels(folder / name).shape == (64, 64, 3)


def test_a_finished_run_has_a_film_whose_cells_are_known_one_after_the_other(opened):
    run, metrics = opened
    summary = finish(run, metrics, metrics)
    film = json.loads((run.run_dir / "film" / "film.json").read_text())
    frames = [read_pixels(run.run_dir / "film" / name) for name in film["frames"]]
    gray = [int((pixels == 160).all(axis=2).sum()) for pixels in frames]
    assert gray == sorted(gray, reverse=True)
    assert gray[0] == 64 * 64 - 16 * 16 * 3  # three of 16 codes at the first of 3 cosine steps
    assert gray[-1] == 0
    assert summary == json.loads((run.run_dir / "summary.json").read_text())


def test_evaluating_by_itself_leaves_the_run_as_it_is(recipe, opened):
    run, metrics = opened
    before = sorted((path, path.stat().st_mtime_ns) for path in run.run_dir.rglob("*"))
    assert evaluate_run(recipe, run.run_dir) == metrics
    assert sorted((path, path.stat().st_mtime_ns) for path in run.run_dir.rglob("*")) == before


def test_accuracy_counts_from_pass_at_as_gates_do(recipe, opened):
    run, metrics = opened
    even = recipe.rewards["even"].model_copy(update={"pass_at": 0.0})
    easy = recipe.model_copy(update={"rewards": recipe.rewards | {"even": even}})
    found = evaluate_run(easy, run.run_dir)
    assert metrics["eval/reason/accuracy"] < 1.0
    assert found["eval/reason/accuracy"] == 1.0
    assert found["eval/reason/reward"] == metrics["eval/reason/reward"]
