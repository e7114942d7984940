"""What a run is made from, by content: a resumed run goes on with the same, or says with what else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unigrpo.cli.app import run
from unigrpo.errors import UserError
from unigrpo.recipe.load import load_recipe
from unigrpo.runs import identity
from unigrpo.runs.directory import create_run_dir, read_run
from unigrpo.runs.identity import IDENTITY, check_identity, hash_of_checkpoint, record_identity

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def run_dir(recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path) -> Path:
    """A run that began, of a recipe whose base is a copy of its own."""
    weights = tmp_path / "policy" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    (tmp_path / "beside.py").write_text("SCALE = 1\n")
    reward = tmp_path / "my_rewards.py"
    reward.write_text("import beside\nfrom helpers.inner import words\n" + reward.read_text())
    (tmp_path / "helpers" / "inner").mkdir(parents=True)
    (tmp_path / "helpers" / "inner" / "words.py").write_text("WORDS = []\n")
    (tmp_path / "prices.json").write_text("{}")
    spaced = tmp_path / "my rewards"
    spaced.mkdir()
    (spaced / "its own.py").write_text("def one(*, completions, table, nested=()):\n    return [1.0]\n")
    arguments = {"table": str(tmp_path / "prices.json"), "nested": [{"file": str(tmp_path / "my rewards/a.txt")}]}
    (spaced / "a.txt").write_text("a")
    recipe_values["rewards"]["spaced"] = {"use": "my rewards/its own.py:one", "arguments": arguments}
    recipe = load_recipe(write_recipe(recipe_values))
    folder = tmp_path / "run"
    create_run_dir(recipe, folder)
    record_identity(recipe, folder)
    return folder


def appended(path: Path, content: str = "\n") -> None:
    path.write_bytes(path.read_bytes() + content.encode())


CHANGES = {
    "a row": ("prompts.jsonl", ["tasks.reason.data.jsonl", "tasks.imagine.data.eval_jsonl"]),
    "a reward": ("my_rewards.py", ["rewards.length.use"]),
    "what a reward imports": ("beside.py", ["rewards.length.use"]),
    "a module of a package that a reward imports": ("helpers/inner/words.py", ["rewards.length.use"]),
    "a reward whose path has spaces": ("my rewards/its own.py", ["rewards.spaced.use"]),
    "a file that a reward is given": ("prices.json", ["rewards.spaced.arguments.table"]),
    "a file within lists": ("my rewards/a.txt", ["rewards.spaced.arguments.nested.0.file"]),
    "a picture of a row": ("picture.png", ["tasks.understand.data.jsonl (pictures)"]),
    "the base's config": ("policy/config.json", ["policy.path"]),
    "the image tokenizer": ("image_tokenizer/model.safetensors", ["policy.image_tokenizer"]),
}


def test_a_run_goes_on_with_what_it_began_with(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "policy" / "README.md").write_text("not read by anything")
    before = (run_dir / IDENTITY).read_text()
    check_identity(read_run(run_dir), run_dir, accepts_changes=False)
    assert (run_dir / IDENTITY).read_text() == before
    assert {"tasks.reason.data.jsonl", "rewards.length.use", "policy.path"} <= json.loads(before)["content"].keys()


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_named_refused_and_may_be_accepted(run_dir: Path, tmp_path: Path, what: str) -> None:
    name, keys = CHANGES[what]
    appended(tmp_path / name)
    recipe = read_run(run_dir)
    with pytest.raises(UserError) as raised:
        check_identity(recipe, run_dir, accepts_changes=False)
    assert all(key in str(raised.value) for key in keys)
    assert f"unigrpo resume {run_dir} --accept-changes" in str(raised.value)
    began = json.loads((run_dir / IDENTITY).read_text())["content"]
    (run_dir / "metrics.jsonl").write_text('{"step": 3}\n')
    check_identity(recipe, run_dir, accepts_changes=True)
    (accepted,) = json.loads((run_dir / IDENTITY).read_text())["accepted"]
    assert accepted["step"] == 3
    assert {key: began[key] for key in keys}.items() <= accepted["before"].items()
    check_identity(recipe, run_dir, accepts_changes=False)


def test_the_command_refuses_before_anything_is_loaded(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    appended(tmp_path / "prompts.jsonl", '{"prompt": "x", "image": "picture.png"}\n')
    assert run(["resume", str(run_dir)]) == 2
    assert "--accept-changes" in capsys.readouterr().err.replace("\n", " ")


def test_a_file_that_moved_is_the_same_and_one_that_is_new_is_no_change(
    run_dir: Path, tmp_path: Path, recipe_values: dict[str, Any], write_recipe: Write
) -> None:
    (tmp_path / "prompts.jsonl").rename(tmp_path / "moved.jsonl")
    for task in recipe_values["tasks"].values():
        task["data"] = {"jsonl": "moved.jsonl", "eval_jsonl": "moved.jsonl"}
    (tmp_path / "new.py").write_text("def one(*, completions):\n    return [1.0] * len(completions)\n")
    recipe_values["rewards"]["one"] = {"use": "new.py:one"}
    recipe = load_recipe(write_recipe(recipe_values))
    check_identity(recipe, run_dir, accepts_changes=False)
    assert "rewards.one.use" in json.loads((run_dir / IDENTITY).read_text())["content"]


@pytest.mark.parametrize("content", ["[]", "{", '{"content": {"a": 1}, "accepted": []}', '{"content": []}'])
def test_a_damaged_identity_is_named(run_dir: Path, content: str) -> None:
    (run_dir / IDENTITY).write_text(content)
    with pytest.raises(UserError, match=rf"{IDENTITY}.*; delete it to go on"):
        check_identity(read_run(run_dir), run_dir, accepts_changes=False)
    (run_dir / IDENTITY).unlink()
    check_identity(read_run(run_dir), run_dir, accepts_changes=False)
    assert (run_dir / IDENTITY).is_file()


def test_a_large_file_is_told_by_pieces_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE_BYTES", 1_000_000)
    path = tmp_path / "model.safetensors"
    content = bytearray(8_000_000)
    path.write_bytes(content)
    first = hash_of_checkpoint(tmp_path)
    assert hash_of_checkpoint(tmp_path) == first
    for place in (0, 4_000_000 - 20_000, len(content) - 1):
        changed = bytearray(content)
        changed[place : place + 150_000] = b"\x01" * (min(len(content), place + 150_000) - place)
        path.write_bytes(changed)
        assert hash_of_checkpoint(tmp_path) != first
