"""Held-out prompts that training asks, too, are said; so is a file that nothing reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from unigrpo.cli.app import run
from unigrpo.data.held_out import held_out_problems
from unigrpo.data.sources import check_jsonl

Lines = list[dict[str, Any]]


def problems(tmp_path: Path, train: Lines, held_out: Lines, kind: Any = "reason") -> list[str]:
    files = []
    for name, lines in (("train", train), ("test", held_out)):
        (tmp_path / name).mkdir(exist_ok=True)
        path = tmp_path / name / "data.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append({path: check_jsonl(path, kind, {})})
    return [problem.replace(f"{tmp_path}/", "") for problem in held_out_problems(*files)]


def test_prompts_that_both_ask_are_counted_with_the_first_of_them(tmp_path: Path) -> None:
    train = [{"prompt": "a"}, {"prompt": "b"}]
    turns = [{"role": "user", "content": "b"}]
    held_out = [{"prompt": "c"}, {"prompt": turns, "id": 9, "answer": 1}, {"prompt": "b"}]
    (problem,) = problems(tmp_path, train, held_out)
    assert problem.startswith(
        "test/data.jsonl: 2 of 3 prompts are asked in training, too (the first: test/data.jsonl:2, "
    )
    assert "as train/data.jsonl:2)" in problem
    assert problems(tmp_path, train, [{"prompt": "B"}, {"prompt": "a "}]) == []


def test_a_copy_of_the_file_is_told_by_its_content(tmp_path: Path) -> None:
    lines = [{"prompt": "a"}]
    assert problems(tmp_path, lines, lines) == [
        "test/data.jsonl has the content of train/data.jsonl: its scores are of prompts that were trained on"
    ]


def test_questions_about_pictures_are_equal_where_the_content_of_the_pictures_is(tmp_path: Path) -> None:
    for folder, name, color in (
        ("train", "a", "red"),
        ("train", "b", "blue"),
        ("test", "c", "red"),
        ("test", "d", "lime"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), color).save(tmp_path / folder / f"{name}.png")
    train = [{"prompt": "what?", "image": "b.png"}, {"prompt": "what?", "image": "a.png"}]
    held_out = [{"prompt": "what?", "image": "d.png"}, {"prompt": "what?", "image": ["c.png"]}]
    (problem,) = problems(tmp_path, train, held_out, "understand")
    assert "1 of 2 prompts" in problem
    assert "test/data.jsonl:2, as train/data.jsonl:2" in problem


def test_check_says_that_the_file_of_both_is_one(
    recipe_values: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(recipe_values)
    assert run(["check", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "warning: " in shown
    assert "prompts.jsonl is also the file of training prompts" in shown


def supervised(recipe_values: dict[str, Any], tmp_path: Path, data: dict[str, Any], **task: Any) -> str:
    taught = {"data": {"jsonl": "prompts.jsonl", **data}, "batch_size": 2, "completion_length": 8, **task}
    recipe = {"name": "taught", "num_steps": 1, "lr": 1e-3, "tasks": {"understand": taught}}
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(recipe | {"policy": recipe_values["policy"]}))
    return str(path)


def test_a_supervised_stage_needs_no_held_out_file_and_says_that_it_reads_none(
    recipe_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", supervised(recipe_values, tmp_path, {})]) == 0
    assert "warning" not in capsys.readouterr().out
    assert run(["check", supervised(recipe_values, tmp_path, {"eval_jsonl": "prompts.jsonl"})]) == 0
    assert "tasks.understand.data.eval_jsonl is not read" in capsys.readouterr().out


def test_noise_is_not_asked_of_the_demonstrations_of_a_file(
    recipe_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", supervised(recipe_values, tmp_path, {}, noise=0.5)]) == 2
    assert "tasks.understand.noise: a file's demonstrations are as they are" in capsys.readouterr().err
