"""A run folder that somebody touched: every file is read by its schema, and what is wrong with it is one line."""

import hashlib
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from unigrpo.documents import MAX_DEPTH, parse_json
from unigrpo.errors import UserError
from unigrpo.export import export_run
from unigrpo.learner.optimizer import Optimizer, load_training, save_training
from unigrpo.models.adapter import trainable_state
from unigrpo.models.opening import open_policy
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.recipe.load import load_recipe
from unigrpo.recipe.text import parse
from unigrpo.report.write import write_report
from unigrpo.rewards.runtime.journal import load_step
from unigrpo.runs.checkpoint import latest_checkpoint, save_checkpoint
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.summary import finished_summary, saved_evaluation
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings, PolicySettings
from unigrpo.train import train

LETTERS = "def letters(*, completions, **columns):\n    return [float('1' in text) for text in completions]\n"
DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_policy(folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def finished(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with everything that it leaves behind."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.py").write_text(LETTERS)
    recipe = {
        "name": "touched",
        "num_steps": 2,
        "group_size": 2,
        "num_threads": 1,
        "policy": {"path": str(policy_folder), "dtype": "float32"},
        "lora": {"r": 2, "alpha": 4},
        "tasks": {
            "reason": {
                "data": {"use": "unigrpo.quickstart.sums:Sums"},
                "prompts_per_step": 1,
                "sampling": {"completion_length": 4, "num_denoising_steps": 2},
            }
        },
        "rewards": {"letters": {"use": "mine.py:letters"}},
        "learner": {"lr": 0.01},
        "evaluate": {"num_prompts": 2},
        "checkpoint": {"every": 1},
        "tracking": {"use": ["jsonl"], "rollouts_every": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(folder / "recipe.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Saved:
    """A policy with two checkpoints of it on disk, whose files can be touched under a manifest that fits."""

    def __init__(self, policy_folder: Path, run_dir: Path) -> None:
        settings = PolicySettings(path=str(policy_folder), dtype="float32")
        self.run_dir = run_dir
        self.policy: Any = open_policy(settings, LoraSettings(r=2, alpha=4), 0)
        self.optimizer = Optimizer(self.policy.module, LearnerSettings(lr=0.1), 10)
        for step in (1, 2):
            weights = [weight for weight in self.policy.module.parameters() if weight.requires_grad]
            sum((weight - 1.0).square().sum() for weight in weights).backward()
            self.optimizer.update(0)
            self.optimizer.clear_gradients()
            write = partial(save_training, self.policy, self.optimizer)
            save_checkpoint(run_dir, step, {"wall_s": 1.0, "seed": 0}, write, keep=2)
            if step == 1:
                self.first = trainable_state(self.policy)
        self.newest = run_dir / "checkpoints" / "step_000002"

    def latest(self) -> Any:
        return latest_checkpoint(self.run_dir, partial(load_training, self.policy, self.optimizer))

    def sign(self) -> None:
        """Make the manifest fit again, as somebody would who means it."""
        files = [file for file in self.newest.rglob("*") if file.is_file() and file.name != "manifest.json"]
        names = {str(file.relative_to(self.newest)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        (self.newest / "manifest.json").write_text(json.dumps(names))


@pytest.fixture
def saved(policy_folder: Path, tmp_path: Path) -> Saved:
    return Saved(policy_folder, tmp_path / "run")


def _without_half_its_moments(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("exp_avg_sq:")}


TOUCHED = {
    "manifest a list": ("manifest.json", "[]"),
    "manifest null": ("manifest.json", "null"),
    "manifest of numbers": ("manifest.json", '{"state.json": 3}'),
    "manifest that names nothing": ("manifest.json", "{}"),
    "manifest that leads out": ("manifest.json", '{"state.json": "", "../../x": ""}'),
    "manifest deep": ("manifest.json", DEEP),
    "state without step": ("state.json", '{"wall_s": 1.0, "seed": 0}'),
    "state of text": ("state.json", '{"step": "2", "wall_s": 1.0}'),
    "state a list": ("state.json", "[2]"),
    "state of a negative step": ("state.json", '{"step": -5, "wall_s": 1.0}'),
    "state of another step": ("state.json", '{"step": 9, "wall_s": 1.0}'),
    "state without end": ("state.json", '{"step": 2, "wall_s": Infinity}'),
    "state cut": ("state.json", '{"step": 2,'),
    "a pickle as adapter": ("adapter/adapter_model.safetensors", "\x80\x04K\x01."),
    "an empty optimizer": ("optimizer.safetensors", ""),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_the_older_checkpoint_is_used_where_the_newest_was_touched(
    name: str, saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    file, content = TOUCHED[name]
    (saved.newest / file).write_text(content, encoding="latin-1")
    if file != "manifest.json":
        saved.sign()
    assert saved.latest().step == 1
    assert str(saved.newest / file) in caplog.text and "step_000001 instead" in caplog.text
    for key, tensor in trainable_state(saved.policy).items():
        assert torch.equal(tensor, saved.first[key])


@pytest.mark.parametrize("change", ["shapes", "half", "nan", "adapter"])
def test_tensors_that_do_not_fit_are_passed_over(change: str, saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    file = saved.newest / ("adapter/adapter_model.safetensors" if change == "adapter" else "optimizer.safetensors")
    state = load_file(file)
    first = min(name for name in state if not name.startswith("step"))
    if change == "half":
        state = _without_half_its_moments(state)
    elif change == "nan":
        state[first] = torch.full_like(state[first], float("nan"))
    else:
        state[first] = torch.zeros(3, 5)
    save_file(state, file)
    saved.sign()
    assert saved.latest().step == 1
    assert str(file) in caplog.text


def test_where_no_checkpoint_can_be_used_nothing_begins_again_unasked(saved: Saved) -> None:
    for folder in (saved.run_dir / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be used: .*state.json is missing.*delete"):
        saved.latest()


@pytest.mark.parametrize("content", ["[]", "null", '{"num_steps": "2"}', '{"num_steps": Infinity}', DEEP, "{"])
def test_a_touched_summary_is_named(content: str, run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary.json.*delete it"):
        finished_summary(run_dir)
    with pytest.raises(UserError, match=r"summary\.json"):
        export_run(run_dir, tmp_path / "out", is_merged=False)


@pytest.mark.parametrize("content", ["[]", "7", '{"eval/reason/reward": "high"}', '{"eval/reason/n": [1]}'])
def test_a_touched_evaluation_is_named(content: str, run_dir: Path) -> None:
    (run_dir / "eval_before" / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"eval_before.metrics.json.*delete it to evaluate again"):
        saved_evaluation(run_dir, "before")


@pytest.mark.parametrize("line", ['{"step": "one"}', '{"step": 0}', '{"step": 1.5}', '{"step": null}', "[1]", DEEP])
def test_a_touched_line_of_metrics_is_named(line: str, run_dir: Path) -> None:
    file = run_dir / "metrics.jsonl"
    file.write_text(line + "\n" + file.read_text())
    with pytest.raises(UserError, match=r"metrics.jsonl:1: .*remove that line"):
        read_metrics(run_dir)


@pytest.mark.parametrize("part", ["values", "status", "names", "ranges", "pass_at"])
@pytest.mark.parametrize("value", [[], None, "x", [[]], [["x"]], {}])
def test_a_touched_journal_is_named(part: str, value: Any, finished: Path, tmp_path: Path) -> None:
    journal = json.loads(min((finished / "rewards").iterdir()).read_text())
    if journal[part] == value or (part == "pass_at" and value == []):  # none for any
        return
    (tmp_path / "step.json").write_text(json.dumps(journal | {part: value}))
    with pytest.raises(UserError, match=r"step.json is not a reward table .*delete it"):
        load_step(tmp_path / "step.json")


HOSTILE: tuple[Any, ...] = (None, -1.5, "text", [[]], {"a": [None]}, 10**400)


@pytest.mark.parametrize("file", ["summary.json", "environment.json", "eval_after/samples.jsonl", "metrics.jsonl"])
def test_a_report_of_a_touched_run_shows_the_rest_or_names_the_file(
    file: str, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    original = (run_dir / file).read_text().splitlines() if file.endswith("l") else [(run_dir / file).read_text()]
    record = json.loads(original[0])
    first = next(iter(record))
    for keys in ([first], [key for key in record if key != first], list(record)[1::4], list(record)[2::4]):
        for value in HOSTILE:
            touched = record | dict.fromkeys(keys, value)
            (run_dir / file).write_text("\n".join([json.dumps(touched), *original[1:]]) + "\n")
            try:
                page = write_report([run_dir], tmp_path / "report.html").read_text()
            except UserError as error:
                assert str(run_dir / file) in str(error)
            else:
                assert "touched" in page


@pytest.mark.parametrize("content", ["hello", "[1]", "7", DEEP, "\xff", "a: [", "evaluate: {accuracy: 1}", "policy: x"])
def test_a_report_names_a_touched_recipe(content: str, run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "recipe.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"recipe.yaml"):
        write_report([run_dir], tmp_path / "report.html")


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 5000, 100_000])
def test_deep_texts_are_refused_in_words(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth):
        with pytest.raises(ValueError, match=r"more than 100|not JSON"):
            parse_json(text)
    if depth < 1000:
        with pytest.raises(yaml.YAMLError, match="more than 100"):
            parse("[" * depth + "]" * depth)
        with pytest.raises(yaml.YAMLError, match="more than 100"):
            parse("- " * depth)


def test_a_depth_at_the_limit_is_read() -> None:
    text = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert parse_json(text) == parse(text) == json.loads(text)
    assert parse_json("[" + "[]," * 500 + "[]]") == [[]] * 501


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_what_is_no_number_of_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON: -?(NaN|Infinity); write null"):
        parse_json(text)


def test_an_alias_bomb_is_judged_in_no_time() -> None:
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert parse("\n".join(lines))["a0"] == [1, 1]
