"""Tasks have names beside their kinds: two of one kind train, evaluate, resume and are reported apart."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image
from reward_rollouts import rollout

from unigrpo.cli.app import app
from unigrpo.data.sources import load_prompts
from unigrpo.errors import RecipeError
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.recipe.load import load_recipe, load_sft_recipe
from unigrpo.report.data import read_run
from unigrpo.report.write import _color
from unigrpo.reward_table import RewardTable
from unigrpo.rewards.runtime.columns import columns_of
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.rollouts.units import plan_units
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.samples import write_samples
from unigrpo.runs.trackers.base import Tracker
from unigrpo.scoring.items import read_items
from unigrpo.seeding import fold
from unigrpo.settings.recipe import Recipe
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.tasks import DataSettings, SamplingSettings
from unigrpo.sizing.arithmetic import batch_arithmetic
from unigrpo.supervised.sft import run_sft
from unigrpo.train import resume, train
from unigrpo.types import Message, Prompt

REWARDS = """
def evenness(*, prompts, completions, task):
    assert set(task) == {"evens"}
    return [len(text) % 2 for text in completions]


def early(*, prompts, completions, task, kind):
    assert set(task) <= {"evens", "letters"} and set(kind) == {"reason"}
    return [sum(character in "abcdefghijklm" for character in text) / max(len(text), 1) for text in completions]


def blueness(*, prompts, completions):
    return [image.convert("RGB").resize((1, 1)).getpixel((0, 0))[2] / 255 for image in completions]
"""


def text_task(file):
    return {
        "kind": "reason",
        "data": {"jsonl": file, "eval_jsonl": file},
        "prompts_per_step": 2,
        "sampling": {"completion_length": 6, "num_denoising_steps": 2},
    }


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    make_policy(folder / "policy")
    (folder / "my_rewards.py").write_text(REWARDS)
    for name in ("evens", "letters"):
        rows = [{"id": number, "prompt": f"{name} {number}"} for number in range(3)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "named",
        "num_steps": 2,
        "group_size": 2,
        "num_threads": 1,
        "policy": {"path": "policy", "image_tokenizer": "asset:tiny_magvit", "image_size": 64, "dtype": "float32"},
        "lora": {"r": 2, "alpha": 4},
        "tasks": {
            "evens": text_task("evens.jsonl"),
            "captions": {
                "kind": "imagine",
                "data": {"use": "unigrpo.quickstart.scenes:ImagineScenes"},
                "prompts_per_step": 1,
                "sampling": {"completion_length": 16, "num_denoising_steps": 2, "schedule": "cosine"},
            },
            "letters": text_task("letters.jsonl"),
        },
        "rewards": {
            "even": {"use": "my_rewards.py:evenness", "tasks": ["evens"]},
            "early": {"use": "my_rewards.py:early", "tasks": ["reason"], "pass_at": 0.5},
            "blue": {"use": "my_rewards.py:blueness", "tasks": ["imagine"]},
        },
        "learner": {"lr": 0.01, "lr_schedule": "constant"},
        "evaluate": {"num_prompts": 3, "accuracy": {"evens": "even", "reason": "early"}},
        "checkpoint": {"every": 1},
        "tracking": {"use": ["jsonl", "report"], "rollouts_every": 1},
    }
    (folder / "named.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "named.yaml"


@pytest.fixture(scope="module")
def whole_run(recipe_path, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, train(load_recipe(recipe_path), run_dir)


def test_a_kind_in_a_recipe_stands_for_its_tasks_and_a_tasks_own_accuracy_goes_before_that_of_its_kind(recipe_path):
    recipe = load_recipe(recipe_path)
    assert [reward.tasks for reward in recipe.rewards.values()] == [["evens"], ["evens", "letters"], ["captions"]]
    assert recipe.evaluate.accuracy == {"evens": "even", "letters": "early"}
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_two_tasks_of_a_kind_are_measured_apart(whole_run):
    run_dir, summary = whole_run
    for record in read_metrics(run_dir):
        names = {name.split("/")[1] for name in record if name.startswith("tasks/")}
        assert names == {"evens", "letters", "captions"}
    for side in ("eval_before", "eval_after"):
        found = summary[side]
        assert [found[f"eval/{name}/n"] for name in ("evens", "letters", "captions")] == [3, 3, 3]
        assert {name for name in found if name.endswith("/accuracy")} == {
            "eval/evens/accuracy",
            "eval/letters/accuracy",
        }
        assert {name for name in found if "/rewards/" in name} == {
            "eval/evens/rewards/even",
            "eval/evens/rewards/early",
            "eval/letters/rewards/early",
            "eval/captions/rewards/blue",
        }
        rows = [json.loads(line) for line in (run_dir / side / "scores.jsonl").read_text().splitlines()]
        passed = {name: [row["greedy_passed"] for row in rows if row["task"] == name] for name in ("evens", "letters")}
        assert found["eval/evens/accuracy"] == pytest.approx(sum(row["even"] for row in passed["evens"]) / 3)
        assert found["eval/letters/accuracy"] == pytest.approx(sum(row["early"] for row in passed["letters"]) / 3)


def test_equal_ids_of_two_tasks_are_two_prompts(whole_run):
    run_dir, _ = whole_run
    rows = [json.loads(line) for line in (run_dir / "eval_before" / "scores.jsonl").read_text().splitlines()]
    ids = {name: {row["id"] for row in rows if row["task"] == name} for name in ("evens", "letters")}
    assert ids["evens"] == ids["letters"] == {"0", "1", "2"}
    samples = [
        json.loads(line) for path in (run_dir / "rollouts").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    seeds = [sample["seed"] for sample in samples]
    assert len(seeds) == 2 * 2 * 5 and len(set(seeds)) == len(seeds)


def test_the_report_shows_every_task_in_its_own_color_and_the_film_is_of_the_pictures(whole_run):
    run_dir, _ = whole_run
    run = read_run(run_dir)
    assert run.tasks == ["evens", "captions", "letters"]
    assert len({_color(run, task) for task in run.tasks}) == 3
    assert run.film is not None
    page = (run_dir / "report.html").read_text()
    for name in ("evens", "letters", "captions"):
        assert f">{name}</span>" in page
    assert "Completions: letters" in page


class StopsInTheSecondStep(Tracker):
    def step(self, metrics):
        if metrics["step"] == 2:
            raise KeyboardInterrupt


def test_a_run_of_named_tasks_that_is_stopped_ends_as_if_it_had_not_been(recipe_path, whole_run, tmp_path):
    whole, _ = whole_run
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(recipe_path), tmp_path / "run", StopsInTheSecondStep())
    summary = resume(tmp_path / "run")
    hashes = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (whole, tmp_path / "run")
        for path in (folder / "checkpoints" / "step_000002").rglob("adapter_model.safetensors")
    ]
    assert len(hashes) == 2 and hashes[0] == hashes[1]
    assert summary["eval_after"] == json.loads((whole / "summary.json").read_text())["eval_after"]


def test_the_noise_of_a_task_called_by_its_kind_is_keyed_by_the_kind_and_that_of_another_by_its_name():
    sampling = SamplingSettings(completion_length=4, num_denoising_steps=2)
    prompts = [Prompt(id="7", kind="reason", task=name, messages=()) for name in ("", "gsm8k", "countdown")]
    units = plan_units([(prompt, sampling) for prompt in prompts], group_size=1, rows_per_unit=8, seed=5, step=3)
    wanted = [fold(fold(5, 3, name, "7", 0), 0) for name in ("reason", "gsm8k", "countdown")]
    assert [seed for unit in units for seed in unit.seeds] == wanted


def test_prompts_of_a_generator_and_of_a_file_get_the_name_of_their_task(tmp_path):
    sums = load_prompts(DataSettings(use="unigrpo.quickstart.sums:Sums"), "sums", "reason", "train", 0)[0]
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    line = load_prompts(DataSettings(jsonl=str(tmp_path / "a.jsonl")), "file", "reason", "train", 0)[0]
    assert [(prompt.task, prompt.kind) for prompt in (sums, line)] == [("sums", "reason"), ("file", "reason")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rewards.even.tasks=[letter]",
            "letter is no task of this recipe and no kind of one; it has captions (imagine)",
        ),
        ("evaluate.accuracy={understand: even}", "understand is no task of this recipe and no kind of one; it has"),
        ("evaluate.accuracy={letters: even}", "the reward even does not apply to letters"),
        ("policy.image_tokenizer=null", "the task captions needs one"),
        ("tasks.letters.sampling.schedule=cosine", "cosine is a schedule of pictures; wanted linear for reason"),
        ("tasks.captions.sampling.completion_length=15", "tasks.captions.sampling.completion_length: 15 codes make no"),
    ],
)
def test_a_wrong_name_says_which_there_are(recipe_path, override, message):
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe_path, [override])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "tasks.a/b: a name is part of its metrics' names; wanted letters, digits"),
        ("..", "tasks...: a name is part of its metrics' names"),
        ("imagine", "tasks.imagine.kind: given reason; imagine is a kind itself; give the task a name that is none"),
    ],
)
def test_names_that_cannot_be_are_refused(recipe_path, name, message):
    values = yaml.safe_load(recipe_path.read_text())
    values["tasks"][name] = values["tasks"]["letters"]
    path = recipe_path.with_name("refused.yaml")
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert message in str(raised.value)


def test_check_shows_the_kinds_of_tasks(recipe_path):
    rows = batch_arithmetic(load_recipe(recipe_path))["tasks"]
    assert [row.name for row in rows] == ["evens (reason)", "captions (imagine)", "letters (reason)"]


def test_an_override_reaches_a_task_with_a_dot_in_its_name(recipe_path):
    values = yaml.safe_load(recipe_path.read_text())
    values["tasks"]["letters.v2"] = values["tasks"].pop("letters")
    path = recipe_path.with_name("dotted.yaml")
    path.write_text(yaml.safe_dump(values))
    recipe = load_recipe(path, ["tasks.letters.v2.sampling.completion_length=4"])
    assert recipe.tasks["letters.v2"].sampling.completion_length == 4


def test_pictures_of_prompts_with_equal_ids_are_kept_apart(tmp_path):
    table = RewardTable(
        names=("one",), values=np.ones((2, 1)), status=np.zeros((2, 1), np.int64), weights=np.ones(1), ranges=((0, 1),)
    )
    pictures = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    rollouts = [
        rollout("a", kind="understand", task=name, messages=(Message(role="user", text="?", images=(picture,)),))
        for name, picture in zip(("charts", "photos"), pictures, strict=True)
    ]
    write_samples(tmp_path / "samples.jsonl", [(made, table, row) for row, made in enumerate(rollouts)])
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    found = [Image.open(tmp_path / record["prompt_image"]).getpixel((0, 0)) for record in records]
    assert found == [(255, 0, 0), (0, 0, 255)]


def test_saved_completions_of_named_tasks_are_scored_by_name_and_by_kind(tmp_path):
    Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "x.png")
    rows = [
        {"prompt": "p", "completion": "ab", "task": "evens"},
        {"prompt": "q", "completion": "abc", "task": "letters"},
        {"prompt": "r", "completion": None, "image": "x.png", "task": "captions"},
        {"prompt": "s", "completion": "n"},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = read_items(tmp_path / "data.jsonl")
    assert [(item.task, item.kind) for item in items] == [
        ("evens", "reason"),
        ("letters", "reason"),
        ("captions", "imagine"),
        ("reason", "reason"),
    ]
    (tmp_path / "count.py").write_text(
        "def count(*, prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    use = f"{tmp_path / 'count.py'}:count"
    rewards = {
        "named": RewardSettings(use=use, tasks=["letters"]),
        "of_a_kind": RewardSettings(use=use, tasks=["reason"]),
    }
    with RewardPool(rewards) as pool:
        pool.start()
        table = pool.score([item.rollout() for item in items]).table
    asked = [[table.values_of(row)[name] for row in range(4)] for name in rewards]
    assert asked == [[None, 3.0, None, None], [2.0, 3.0, None, 1.0]]


def test_the_column_kind_is_the_datas_own_where_it_has_one():
    ours = rollout("a", number=0)
    named = replace(ours, prompt=replace(ours.prompt, task="gsm8k"))
    theirs = replace(ours, prompt=replace(ours.prompt, columns={"kind": "easy"}))
    assert columns_of([named], wanted=frozenset({"task", "kind"}))["kind"] == ["reason"]
    assert columns_of([named], wanted=frozenset({"task"}))["task"] == ["gsm8k"]
    assert columns_of([theirs], wanted=frozenset({"kind"}))["kind"] == ["easy"]
    assert "kind" not in columns_of([named])


def test_a_supervised_stage_trains_two_tasks_of_a_kind(recipe_path, tmp_path, capsys):
    tasks = {
        "sums": {"data": {"use": "unigrpo.quickstart.sums:Sums"}, "batch_size": 4, "completion_length": 12},
        "more": {"data": {"use": "unigrpo.quickstart.sums:Sums"}, "batch_size": 2, "completion_length": 14},
    }
    values = {
        "name": "both",
        "num_steps": 2,
        "policy": {"path": str(recipe_path.parent / "policy"), "dtype": "float32"},
        "tasks": {name: {"kind": "reason", **task} for name, task in tasks.items()},
        "lr": 1e-3,
        "checkpoint": {"every": 0},
        "tracking": {"use": ["jsonl"]},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit, match="0"):
        app(["check", str(tmp_path / "sft.yaml")])
    assert "sums (reason)  4 demonstrations" in capsys.readouterr().out
    summary = run_sft(load_sft_recipe(tmp_path / "sft.yaml"), tmp_path / "run")
    assert {name for name in summary if name.startswith("loss/")} == {"loss/sums", "loss/more"}
    assert summary["loss"] == pytest.approx(summary["loss/sums"] + summary["loss/more"])
