"""What `unigrpo check` says before a run that the run would only find in the middle, without torch."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unigrpo.cli.app import run
from unigrpo.errors import RecipeError
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora
from unigrpo.recipe.load import load_recipe
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.sizing.memory import activation_bytes
from unigrpo.sizing.model_size import ModelSize
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.types import ModelInput

Write = Callable[[dict[str, Any]], Path]
CODE = """
SIZE = 3
def by_level(*, prompts, completions, level): return []
def with_default(*, prompts, completions, level=None): return []
def all_there_are(*, prompts, completions, **columns): return []
def answered(*, completions, answer, images, task): return []
def by_place(completions, level, /): return []
def of_the_text(*, completions, prompt): return []
def of_the_question(*, completions, question): return []
@decorated
def wrapped(*, completions, level): return []
async def later(*, completions, level): return []
class Counting:
    def __init__(self, size=1): ...
    def __call__(self, *, completions, level): return []
class Inherited(Counting): ...
class Bare:
    def __call__(self):
        return 0.0

class Rows:
    def __getitem__(self, index): ...
    def __init__(self, split, seed): ...
class Iterated:
    def __init__(self, split, seed): ...
    def __iter__(self): ...
def made(split, seed): yield 1
class Anything(Rows):
    def __new__(cls, split, seed): return [1, 2]
class Valued:
    def __new__(cls): return [0.5]
    def __call__(self, *, completions): return []
"""


@pytest.fixture
def problems(recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path) -> Callable[..., list[str]]:
    """Say what is wrong with the small recipe of one text task under overrides."""
    (tmp_path / "code.py").write_text(CODE)
    recipe_values["tasks"] = {"reason": recipe_values["tasks"]["reason"]}
    path = write_recipe(recipe_values)

    def found(*overrides: str) -> list[str]:
        try:
            load_recipe(path, list(overrides))
        except RecipeError as error:
            return list(error.problems)
        return []

    return found


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("by_level", "level"),
        ("with_default", None),
        ("all_there_are", None),
        ("answered", None),
        ("of_the_text", "prompt"),  # prompts come as `prompts`
        ("wrapped", None),  # source does not tell
        ("later", "level"),
        ("Counting", "level"),
        ("Inherited", "level"),
    ],
)
def test_a_column_that_a_call_needs_and_the_file_lacks_is_found(
    name: str, column: str | None, problems: Callable[..., list[str]]
) -> None:
    found = problems(f"rewards.length={{use: 'code.py:{name}'}}")
    if column is None:
        assert found == []
    else:
        assert len(found) == 2  # training and held-out prompts
        assert f"{name} cannot be called without `{column}`, which is no column of tasks.reason.data." in found[0]


def test_a_column_in_any_row_or_given_by_the_recipe_is_enough(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert problems("rewards.length={use: 'code.py:by_level', arguments: {level: 1}}") == []
    assert problems("rewards.length={use: 'code.py:by_place'}")[0].endswith("a reward is called by names alone")
    rows = [{"prompt": "a"}, {"prompt": "b", "level": 3}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert problems("rewards.length={use: 'code.py:by_level'}") == []
    adapter = "{use: 'unigrpo.rewards.adapters:Trl', arguments: {function: 'code.py:of_the_question'}}"
    assert "cannot be called without `question`" in problems(f"rewards.length={adapter}")[0]


def test_a_column_that_is_mapped_to_ours_does_not_go_to_rewards(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"question": "a"}\n')
    mapped = ["tasks.reason.data.columns={prompt: question}", "rewards.length={use: 'code.py:of_the_question'}"]
    assert "cannot be called without `question`" in problems(*mapped)[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=-1", "seed: given -1, wanted greater than or equal to 0"),
        ("seed=99999999999999999999", "seed: given 99999999999999999999, wanted less than"),
        ("rewards.length.timeout_s=1e308", "timeout_s: given 1e+308, wanted less than"),
        ("rewards.length.memory_limit_gb=1e308", "memory_limit_gb"),
        ("rollouts.deadline_s=1e308", "deadline_s"),
        ("learner.lr=1e308", "learner.lr"),
        ("learner.betas=[2, 3]", "learner.betas.0: given 2, wanted less than 1"),
        ("lora.r=1000000000", "lora.r: given 1000000000, wanted less than"),
        ("lora.r=65", "lora.r: 65 is more than 64, the full rank of this model's layers"),
        ("lora.alpha=1e308", "lora.alpha"),
        ("group_size=1000000000", "group_size: given 1000000000, wanted less than"),
        ("tasks.reason.sampling.completion_length=1000000000", "completion_length: given 1000000000"),
        ("tasks.reason.sampling.temperature=1e-40", "temperature: given 1e-40; wanted 0, or at least 0.001"),
        (f"name={'n' * 5000}", "name: given 'nnnn"),
        ("name=a/b", "name: 'a/b' names no folder"),
        ("name=..", "name: '..' names no folder"),
        ("rewards.length.use=builtins:len", "builtins:len is of Python's own library"),
        ("rewards.length.use=os.path:join", "os.path:join is of Python's own library"),
        ("estimator=collections:OrderedDict", "collections:OrderedDict is of Python's own library"),
        ("tasks.reason.data={use: 'builtins:list'}", "builtins:list is of Python's own library"),
        ("tasks.reason.data={use: 'code.py:made'}", "code.py:made is a function; wanted a class"),
        ("tasks.reason.data={use: 'code.py:Iterated'}", "code.py:Iterated has no __getitem__(index) -> Prompt"),
        ("rewards.length.env={python: nowhere/python}", "rewards.length.env.python: there is no file nowhere/python"),
        ("rewards.length.env={python: prompts.jsonl}", "prompts.jsonl may not be run"),
        ("rewards.length.env={requirements: [x], python_version: '3.99'}", "there is no python3.99 on the PATH"),
        (f"policy.path={'p' * 5000}", "characters): file name too long"),
        ("tasks.reason.sampling.block_length=512", "completion_length 16 is not a multiple of block_length 512"),
        ("tasks.reason.sampling.completion_length=100000", "completion_length: 100000, and a row has"),
        ("tasks.reason.sampling.editing_threshold=0.5", "editing_threshold: 0.5, and mmada does not edit"),
        ("tasks.reason.sampling.schedule={use: shift, shift: 1e300}", "schedule.shift: given 1e+300, wanted less than"),
        ("objective.clip_eps=1e300", "objective.clip_eps: given 1e+300, wanted less than"),
        ("lora.targets=[]", "lora.targets: given [], wanted"),
        ("lora.targets=['']", "lora.targets.0: given '', wanted"),
        ("rewards.length.use='code.py:Rows'", "code.py:Rows cannot be called; a reward is a function or a class"),
        (
            "kl={use: 'code.py:Bare'}",
            "__call__ takes fewer arguments than unigrpo.methods.kl.base says: self, logprobs",
        ),
        ("ratio={use: 'code.py:Bare'}", "__call__ takes fewer arguments than unigrpo.methods.ratios.base says"),
        ("rewards.length.use='code.py:SIZE'", "code.py:SIZE cannot be called; a reward is a function or a class"),
    ],
)
def test_a_setting_that_would_crash_or_hang_is_refused(
    override: str, said: str, problems: Callable[..., list[str]]
) -> None:
    try:
        found = problems(override)
    except ValueError as error:
        found = [str(error)]
    assert any(said in line for line in found), found
    assert max(map(len, found)) < 700


def test_a_data_class_with_getitem_is_fine(problems: Callable[..., list[str]]) -> None:
    assert problems("tasks.reason.data={use: 'code.py:Rows'}") == []


@pytest.mark.parametrize(
    ("overrides", "is_refused"),
    [
        (["temperature=0"], True),
        (["temperature=0", "remasking=random"], False),
        (["temperature=0", "remasking=random", "num_denoising_steps=2"], True),  # one step a block commits it all
        (["temperature=0", "remasking_temperature=1"], False),
        (["temperature=0", "remasking_temperature=1", "remasking=sequential"], True),  # it reads no score
        (["temperature=0", "remasking=random", "block_length=1", "num_denoising_steps=16"], True),
        (["temperature=0.5"], False),
    ],
)
def test_completions_of_a_group_that_must_be_equal_are_refused(
    overrides: list[str], is_refused: bool, problems: Callable[..., list[str]]
) -> None:
    found = problems(*(f"tasks.reason.sampling.{override}" for override in overrides))
    assert [line for line in found if "makes all completions of a group equal" in line] == found
    assert bool(found) is is_refused


def test_what_takes_years_is_refused_by_arithmetic(problems: Callable[..., list[str]]) -> None:
    # 10^7 steps x 4 prompts x 65,536 x 16 tokens x 16 denoising steps = 6.7e15 tokens: 2.1 years at 10^8 a second
    large = ["num_steps=10000000", "group_size=65536", "rollouts.rows_per_unit=65536"]
    assert problems(*large, "tasks.reason.sampling.num_denoising_steps=16") == []
    found = problems(*large, "tasks.reason.prompts_per_step=400")
    assert found == [line for line in found if "years at 1e+08 tokens a second" in line] != []
    held = problems("group_size=65536", "rollouts.rows_per_unit=65536", "tasks.reason.prompts_per_step=1000000")
    assert "rollouts of 1,048,576,000,000 tokens together" in held[0]


def test_a_cache_file_that_cannot_be_one_is_refused(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    def found(path: Path | str) -> list[str]:
        return problems("rewards.length.cache=disk", f"rewards.length.cache_file={path}")

    with sqlite3.connect(tmp_path / "right.db") as connection:
        connection.execute("CREATE TABLE rewards (key BLOB PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE rewards (name TEXT)")
    (tmp_path / "damaged.db").write_bytes(b"SQLite format 3\x00" + b"\xff" * 200)
    (tmp_path / "empty.db").touch()
    assert found(tmp_path / "right.db") == found(tmp_path / "empty.db") == found(tmp_path / "new" / "new.db") == []
    for name, said in {
        "other.db": "is a database of others",
        "damaged.db": "is a damaged SQLite file",
        "prompts.jsonl": "is no SQLite file",
        ".": "is a folder",
        "prompts.jsonl/x.db": "is a file, so that",
    }.items():
        assert said in found(tmp_path / name)[0], name


def test_check_says_what_it_cannot_know_and_what_this_machine_lacks(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code.py").write_text(CODE)
    recipe_values["rewards"] = {"one": {"use": "code.py:wrapped"}}
    path = write_recipe(recipe_values)
    assert run(["check", str(path), "policy.device=cuda"]) == 0
    shown = capsys.readouterr().out
    assert f"which columns {tmp_path}/code.py:wrapped needs" in shown
    if not torch.cuda.is_available():
        assert "not on this machine: policy.device: cuda" in shown


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("num_threads=4096", "warning: num_threads: 4,096, and this machine has"),
        ("rollouts={num_actors: 1, num_threads: 4096}", "warning: rollouts.num_threads: 4,096, and this"),
        ("rollouts.num_actors=4096", "warning: rollouts.num_actors: 4,096 ask Ray for a core each"),
        ("rewards.length.num_workers=1024", "warning: rewards.length.num_workers: 1,024 processes take 31 GB before"),
        ("tasks.reason.data={use: 'code.py:Anything'}", "code.py:Anything makes in its __new__"),
        ("rewards.length={use: 'code.py:Valued'}", "code.py:Valued makes in its __new__"),
    ],
)
def test_check_says_what_it_cannot_refuse(
    override: str,
    said: str,
    recipe_values: dict[str, Any],
    write_recipe: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4_000_000}.__getitem__)  # 16 GB
    (tmp_path / "code.py").write_text(CODE)
    recipe_values["tasks"] = {"reason": recipe_values["tasks"]["reason"]}
    path = write_recipe(recipe_values)
    assert run(["check", str(path), "num_threads=8", "rewards.length.num_workers=500"]) == 0
    assert "this machine has" not in capsys.readouterr().out
    assert run(["check", str(path), override]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "override",
    ["rewards.length.use=N", "N=1", "N", "policy.N=1", "policy.dtype=N", "policy.dtype.x=N", "name=[N", "estimator=N",
     "tasks.reason.data.use='N:N'", "tasks.reason.data.template='N N'", "num_steps=N: N", "rewards.N={use: 'a.py:b'}"],
)  # fmt: skip
def test_an_override_of_thousands_of_characters_is_a_short_error(
    override: str, recipe_values: dict[str, Any], write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(write_recipe(recipe_values)), override.replace("N", "n" * 1800)]) == 2
    assert 0 < len(capsys.readouterr().err) < 1000


@pytest.mark.parametrize("arguments", [["train", "quickstart", "--out"], ["report"], ["check"], ["export"], ["resume"]])
def test_a_path_of_thousands_of_characters_is_one_short_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--out", "x"] if arguments == ["export"] else []
    assert run([*arguments, "n" * 5000, *more]) == 2
    shown = capsys.readouterr().err
    assert "file name too long" in shown and len(shown) < 500


@pytest.mark.parametrize("returned", ["None", "[1.0]", "'x'", "{}", "(1.0 for _ in completions)"])
def test_a_reward_that_gives_not_one_value_a_completion_is_one_line(
    returned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.py").write_text(f"def odd(*, completions, **columns):\n    return {returned}\n")
    (tmp_path / "items.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "c"}\n')
    assert run(["score", f"{tmp_path / 'odd.py'}:odd", str(tmp_path / "items.jsonl")]) == 2
    shown = capsys.readouterr().err
    assert "return a list of 2" in shown and "Traceback" not in shown


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_activations_are_those_that_autograd_keeps(family: str, dtype: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family, layers=4, width=64)
    policy = load_policy(folder, dtype=dtype)
    policy.module.requires_grad_(False)
    lora = LoraSettings(r=2)
    add_lora(policy, lora, seed=0)
    weights = {tensor.untyped_storage().data_ptr() for tensor in policy.module.state_dict().values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = policy.hidden(ModelInput(token_ids=torch.randint(0, 100, (4, 64))))
    size = ModelSize.from_folder(folder)
    assert size is not None and hidden.requires_grad
    estimate = activation_bytes(PolicySettings(path=str(folder), dtype=dtype), lora, size, 4, 64)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 0.85 < estimate / measured < 1.15


def test_a_reference_is_counted_only_where_it_is_asked(
    recipe_values: dict[str, Any], write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(recipe_values)
    for overrides, is_there in ((["kl.coef=0"], False), (["kl.to=old"], False), ([], True)):
        assert run(["check", str(path), "lora.enabled=false", *overrides]) == 0
        assert ("the frozen reference" in capsys.readouterr().out) is is_there


def test_a_supervised_recipe_and_a_released_block_model_show_memory(
    recipe_values: dict[str, Any], write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["check", str(write_recipe(recipe_values)), "policy.path=JetLM/SDAR-8B-Chat", "policy.dtype=bfloat16"]) == 0
    )
    assert "16.38 GB" in capsys.readouterr().out
    values = {name: recipe_values[name] for name in ("name", "num_steps", "policy")}
    data = {"jsonl": "prompts.jsonl"}
    tasks = {"reason": {"data": data, "batch_size": 4, "completion_length": 16, "masks": "complementary"}}
    assert run(["check", str(write_recipe({**values, "lr": 1e-3, "tasks": tasks}))]) == 0
    assert "8 rows of about 144 tokens" in capsys.readouterr().out
