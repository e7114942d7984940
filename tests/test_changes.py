"""A run that goes on with another recipe: what may change, from which step, and what is said of it."""

import json
import logging

import pytest
from small_run import REWARD, write_small, write_supervised

from unigrpo.errors import UserError
from unigrpo.evaluation.evaluate import evaluate_run
from unigrpo.export import export_run
from unigrpo.recipe.load import load_recipe, load_sft_recipe
from unigrpo.report.write import write_report
from unigrpo.runs.changes import described, read_history
from unigrpo.runs.checkpoint import latest_checkpoint
from unigrpo.runs.metrics import read_metrics
from unigrpo.supervised.sft import resume_sft, run_sft
from unigrpo.train import resume, train


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def longer(recipe_path, tmp_path_factory):
    """A finished run of two steps that was made longer by one, at another rate."""
    run_dir = tmp_path_factory.mktemp("longer") / "run"
    first = train(load_recipe(recipe_path), run_dir)
    return run_dir, first, resume(run_dir, overrides=["num_steps=3", "learner.lr=0.01"])


def edit(run_dir, old, new):
    text = (run_dir / "recipe.yaml").read_text()
    assert old in text
    (run_dir / "recipe.yaml").write_text(text.replace(old, new))


def test_a_finished_run_made_longer_is_evaluated_again_at_its_new_end(longer):
    run_dir, first, summary = longer
    fresh = evaluate_run(load_recipe(run_dir / "recipe.yaml"), run_dir)
    assert summary["eval_after"] == fresh
    assert summary["eval_after"] != first["eval_after"]
    assert summary["eval_before"] == first["eval_before"]
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    assert summary["num_steps"] == 3
    earlier = json.loads((run_dir / "eval_step_000002" / "metrics.json").read_text())
    assert earlier == {**first["eval_after"], "step": 2}


def test_a_change_is_kept_with_its_step_and_shown(longer, tmp_path):
    run_dir, _, summary = longer
    assert summary["changes"] == [
        {"key": "num_steps", "before": 2, "since": 3, "step": 2},
        {"key": "learner.lr", "before": 0.05, "since": 0.01, "step": 2},
    ]
    assert [record["lr"] for record in read_metrics(run_dir)] == [0.05, 0.05, 0.01]
    assert load_recipe(run_dir / "recipe.yaml").learner.lr == 0.01
    page = write_report([run_dir], tmp_path / "report.html").read_text()
    assert "<b>learner.lr</b>0.05 to step 2, 0.01 since" in page
    export_run(run_dir, tmp_path / "out", is_merged=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- `learner.lr`: 0.05 to step 2, 0.01 since" in card
    assert f"{summary['eval_after']['eval/reason/reward']:.3f} |" in card


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=7", "seed (0 → 7)"),
        ("lora.r=8", "lora.r (4 → 8)"),
        ("policy.dtype=bfloat16", "policy.dtype"),
        ("group_size=2", "group_size"),
        ("tasks.reason.prompts_per_step=3", "tasks.reason.prompts_per_step"),
        ("tasks.reason.sampling.temperature=0.9", "tasks.reason.sampling.temperature"),
        ("rewards.letters.weight=2", "rewards.letters.weight"),
        ("kl.use=k1", "kl.use (k3 → k1)"),
        ("advantages.whiten=true", "advantages.whiten"),
        ("name=other", "name"),
    ],
)
def test_what_would_falsify_the_steps_done_is_refused_by_name(longer, override, key):
    run_dir = longer[0]
    before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    with pytest.raises(UserError) as found:
        resume(run_dir, overrides=[override])
    assert key in str(found.value)
    assert "cannot change" in str(found.value)
    assert "learner.*" in str(found.value)
    assert {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before


def test_fewer_steps_than_are_done_are_refused_and_unknown_keys_are_named(longer):
    run_dir = longer[0]
    with pytest.raises(UserError, match=r"num_steps=1: .* has done 3 steps; give 3 or more"):
        resume(run_dir, overrides=["num_steps=1"])
    with pytest.raises(UserError, match="did you mean `lr`"):
        resume(run_dir, overrides=["learner.lrr=1"])


def test_another_number_of_held_out_prompts_evaluates_a_finished_run_again(recipe_path, tmp_path):
    run_dir = tmp_path / "run"
    train(load_recipe(recipe_path, ["num_steps=1"]), run_dir)
    summary = resume(run_dir, overrides=["evaluate.num_prompts=4"])
    assert summary["eval_after"]["eval/reason/n"] == 4
    assert summary["eval_after"] == evaluate_run(load_recipe(run_dir / "recipe.yaml"), run_dir)
    assert summary["num_steps"] == 1


def test_an_edited_recipe_is_said_and_counts_as_a_change(recipe_path, tmp_path, caplog):
    run_dir = tmp_path / "run"
    train(load_recipe(recipe_path, ["num_steps=1", "evaluate.enabled=false"]), run_dir)
    edit(run_dir, "lr: 0.05", "lr: 0.02")
    page = write_report([run_dir], tmp_path / "report.html").read_text()
    assert "edited, and nothing trained with it yet: learner.lr" in page
    with caplog.at_level(logging.WARNING):
        export_run(run_dir, tmp_path / "out", is_merged=False)
    assert "was edited (learner.lr)" in caplog.text
    assert "lr: 0.05" in (tmp_path / "out" / "README.md").read_text()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        summary = resume(run_dir, overrides=["num_steps=2"])
    assert "was edited: learner.lr (0.05 → 0.02); an edit counts as a change from here on" in caplog.text
    assert [(one["key"], one["step"]) for one in summary["changes"]] == [("num_steps", 1), ("learner.lr", 1)]
    assert [record["lr"] for record in read_metrics(run_dir)] == [0.05, 0.02]


def test_an_edit_that_falsifies_is_refused_until_it_is_put_back(longer):
    run_dir, _, summary = longer
    edit(run_dir, "seed: 0", "seed: 1")
    with pytest.raises(UserError, match=r"seed \(0 → 1\) cannot change .* put recipe.yaml back"):
        resume(run_dir)
    edit(run_dir, "seed: 1", "seed: 0")
    assert resume(run_dir) == summary


def test_a_run_that_goes_on_from_an_older_checkpoint_has_its_changes_from_there(recipe_path, tmp_path):
    run_dir = tmp_path / "run"
    train(load_recipe(recipe_path, ["evaluate.enabled=false"]), run_dir)
    resume(run_dir, overrides=["num_steps=3", "learner.lr=0.01"])
    for step in (2, 3):
        (run_dir / "checkpoints" / f"step_{step:06d}" / "manifest.json").write_text("{")
    assert latest_checkpoint(run_dir).step == 1
    summary = resume(run_dir, overrides=["num_steps=4"])
    assert [record["lr"] for record in read_metrics(run_dir)] == [0.05, 0.01, 0.01, 0.01]
    assert described(read_history(run_dir).changes) == {
        "num_steps": "2 to step 1, 4 since",
        "learner.lr": "0.05 to step 1, 0.01 since",
    }
    assert summary["num_steps"] == 4


def test_the_same_value_again_is_no_change(longer):
    run_dir, _, summary = longer
    assert resume(run_dir, overrides=["learner.lr=0.01", "num_steps=3"]) == summary


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"recipe": {}, "changes": [{"key": 1}]}', "[" * 5000, '{"recipe": {"name": 1}}']
)
def test_a_damaged_history_is_one_message_that_names_it(recipe_path, tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(recipe_path.read_text().replace("policy\n", f"{recipe_path.parent}/policy\n"))
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "changes.json").write_text(content)
    with pytest.raises(UserError, match=r"changes\.json"):
        resume(tmp_path)


def test_a_supervised_run_is_made_longer_and_keeps_its_changes(recipe_path, tmp_path):
    recipe = load_sft_recipe(write_supervised(tmp_path, recipe_path.parent / "policy"), ["checkpoint.every=2"])
    run_sft(recipe, tmp_path / "run")
    summary = resume_sft(tmp_path / "run", overrides=["num_steps=4", "lr=0.001"])
    assert [record["lr"] for record in read_metrics(tmp_path / "run")] == [0.002, 0.002, 0.001, 0.001]
    assert summary["num_steps"] == 4
    assert [(one["key"], one["step"]) for one in summary["changes"]] == [("num_steps", 2), ("lr", 2)]
    with pytest.raises(UserError, match=r"clean_steps \(0 → 5\) cannot change"):
        resume_sft(tmp_path / "run", overrides=["clean_steps=5"])
