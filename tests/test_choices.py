"""A choice is a file: a new one in its folder, or a user's own, trains, and no other file of the package changes."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from unigrpo.errors import RecipeError
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.recipe.load import load_recipe
from unigrpo.train import train

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "unigrpo": "unigrpo",
    "rewards": "unigrpo/rewards",
    "rollouts": "unigrpo/rollouts",
    "recipes": "unigrpo/recipes",
}
HEAD = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

@dataclass(frozen=True, kw_only=True)
class Mine:
    mark: str
    is_linear: ClassVar[bool] = True

"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One folder of choices, and a class of its contract that leaves a mark where it is called."""

    folder: str
    """From the root of the installed package."""
    section: tuple[str | int, ...]
    """Keys that lead to it in the recipe."""
    body: str
    """Of the class ``Mine``; it has a parameter ``mark``, a path to touch."""

    base: str = ""
    """Module and class that it derives from."""

    @property
    def name(self) -> str:
        return Path(self.folder).name

    @property
    def source(self) -> str:
        module, _, base = self.base.rpartition(":")
        imported = f"from {module} import {base}\n" if base else ""
        head = HEAD.replace("class Mine:", f"class Mine({base}):")
        return imported + head + "".join(f"    {line}\n" for line in self.body.strip("\n").splitlines())


CASES = [
    Case(
        folder="methods/estimators",
        section=("estimator",),
        body="""
def draw(self, batch, step, update, num_updates, mask_token_id):
    from unigrpo.methods.estimators.unigrpo import UniGRPO
    Path(self.mark).touch()
    return UniGRPO().draw(batch, step, update, num_updates, mask_token_id)
""",
    ),
    Case(
        folder="methods/ratios",
        section=("ratio",),
        body="""
def __call__(self, log_ratio, rollout):
    Path(self.mark).touch()
    return 1 + log_ratio
""",
    ),
    Case(
        folder="methods/objectives",
        section=("objective",),
        body="""
def __call__(self, inputs):
    Path(self.mark).touch()
    return inputs.ratio * inputs.advantages, inputs.weight < 0
""",
    ),
    Case(
        folder="methods/kl",
        section=("kl",),
        body="""
def __call__(self, logprobs, other_logprobs):
    Path(self.mark).touch()
    return (logprobs - other_logprobs).abs()
""",
    ),
    Case(
        folder="methods/advantages",
        section=("advantages",),
        body="""
def __call__(self, rewards):
    Path(self.mark).touch()
    return rewards - rewards.max()
""",
    ),
    Case(
        folder="rollouts/schedules",
        section=("tasks", "reason", "sampling", "schedule"),
        body="""
is_for_pictures = False
is_fixed = True
is_cooling = False

def count(self, progress):
    Path(self.mark).touch()
    return progress.num_masked

def expected_fraction(self, progress):
    return progress.num_masked * 0.0 + 1
""",
    ),
    Case(
        folder="rollouts/orders",
        section=("tasks", "reason", "sampling", "remasking"),
        body="""
reads = "positions"

def select(self, candidates):
    Path(self.mark).touch()
    return candidates.is_masked
""",
    ),
    Case(
        folder="runs/trackers",
        section=("tracking", "use", 1),
        base="unigrpo.runs.trackers.base:Tracker",
        body="""
def step(self, metrics):
    Path(self.mark).touch()
""",
    ),
]
REWARD = """
def late_letters(*, prompts, completions, **columns):
    return [sum(map(ord, text)) % 7 for text in completions]
"""


def recipe_with(folder: Path, uses: dict[str, str]) -> Path:
    """Write a recipe of one step in which every case's section uses what is given for it."""
    make_policy(folder / "policy")
    (folder / "my_rewards.py").write_text(REWARD)
    recipe: dict = {
        "name": "choices",
        "num_steps": 1,
        "group_size": 4,
        "num_threads": 1,
        "policy": {"path": "policy", "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "tasks": {
            "reason": {
                "data": {"use": "unigrpo.quickstart.sums:Sums"},
                "prompts_per_step": 4,
                "sampling": {"completion_length": 8, "num_denoising_steps": 4},
            }
        },
        "rewards": {"letters": {"use": "my_rewards.py:late_letters"}},
        "learner": {"lr": 0.01},
        "evaluate": {"enabled": False},
        "tracking": {"use": ["jsonl", "mine"], "rollouts_every": 0},
    }
    for case in CASES:
        *path, last = case.section
        section: Any = recipe
        for key in path:
            section = section[key]
        section[last] = {"use": uses[case.name], "mark": str(folder / f"{case.name}.called")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


RUN = """
import sys
# An editable install may find the package before the path is searched; the copy on the path is meant.
sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen_importlib")]
from unigrpo.__main__ import main
main()
"""


def train_with(python_path: Path, recipe: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(python_path)}
    arguments = ["train", str(recipe), "--out", str(recipe.parent / "run")]
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, cwd=recipe.parent, env=environment, capture_output=True, text=True, check=False)


def assert_all_were_called(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.called")} == {f"{case.name}.called" for case in CASES}


def test_a_new_choice_of_every_kind_is_a_file_of_its_folder(tmp_path: Path) -> None:
    package = tmp_path / "package"
    for folder, place in PACKAGES.items():
        shutil.copytree(ROOT / folder, package / place, ignore=shutil.ignore_patterns("__pycache__"))
    for case in CASES:
        (package / "unigrpo" / case.folder / "throwaway.py").write_text(case.source)
    done = train_with(package, recipe_with(tmp_path, {case.name: "throwaway" for case in CASES}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_all_were_called(tmp_path)


def test_a_new_choice_of_every_kind_is_a_file_of_the_user(tmp_path: Path) -> None:
    for case in CASES:
        (tmp_path / f"{case.name}_of_mine.py").write_text(case.source)
    uses = {case.name: f"{case.name}_of_mine.py:Mine" for case in CASES}
    train(load_recipe(recipe_with(tmp_path, uses)), tmp_path / "run")
    assert_all_were_called(tmp_path)


def test_an_unknown_choice_is_named_with_the_nearest_and_an_unknown_parameter_with_the_known(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, {case.name: "token" for case in CASES})
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    for line in ("kl: there is no 'token'; known: k1, k2, k3", "ratio.mark: token takes no such argument"):
        assert line in str(caught.value)
