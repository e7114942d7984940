"""`check` refuses the arguments that training would refuse, of choices, rewards and prompt sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reward_rollouts import rollout

from unigrpo.data.sources import load_prompts
from unigrpo.errors import RecipeError, UserError
from unigrpo.recipe.load import load_recipe
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.tasks import DataSettings

Write = Callable[[dict[str, Any]], Path]


def problems(values: dict[str, Any], write: Write, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(values), overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.clip_eps=-1", "objective.clip_eps: given -1, wanted greater than 0"),
        ("objective.clip_eps=abc", "objective.clip_eps: given 'abc', wanted a valid number"),
        ("objective.clip_ep=1", "objective.clip_ep: clipped takes no such argument; did you mean 'clip_eps'?"),
        ("estimator.spacing=evn", "estimator.spacing: given 'evn'; wanted one of even, alg1, random; did you mean"),
        ("advantages.eps=abc", "advantages.eps: given 'abc', wanted a valid number"),
        (
            "tasks.reason.sampling.remasking={use: entropy, top_k: 0}",
            "remasking.top_k: given 0, wanted greater than or",
        ),
        ("tasks.reason.sampling.schedule={use: shift, shift: -5}", "schedule.shift: given -5, wanted greater"),
        ("tracking.use=[jsonl, {use: report, writer: 3}]", "tracking.use.1.writer: given 3, wanted a valid string"),
        ("tracking.use=[report]", "wanted jsonl once, as the first of use"),
        ("kl=3", "kl: given 3, wanted a name, or `use` with the parameters of the class beside it"),
        ("rewards.length.arguments={completions: 3}", "my_rewards.py:length takes no such argument; it takes: scale"),
        ("rewards={a/b: {use: 'my_rewards.py:length'}}", "rewards.a/b: a name is part of its metrics' names"),
        ("rewards.length={use: 'mine.py:Needs'}", "rewards.length.arguments.size: missing; "),
        ("tasks.reason.data={use: 'mine.py:Prompts'}", "tasks.reason.data.arguments.path: missing; "),
        (
            "tasks.reason.data={use: 'mine.py:Prompts', arguments: {path: a, first: 1}}",
            "mine.py:Prompts takes no such argument; it takes: path",
        ),
    ],
)
def test_check_names_what_is_wrong(
    override: str, said: str, recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Needs:\n    def __init__(self, *, size): ...\n    def __call__(self, **columns): ...\n"
        "class Prompts:\n    def __init__(self, first, second, path): ...\n    def __getitem__(self, index): ...\n"
    )
    found = problems(recipe_values, write_recipe, override)
    assert len(found) == 1 and said in found[0], found


def test_one_tracker_needs_no_list(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(recipe_values), ["tracking.use=jsonl"])
    assert [chosen.use for chosen in recipe.tracking.use] == ["jsonl"]


def test_a_prompt_source_that_cannot_be_called_is_the_user_s_to_mend(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def prompts(split): ...\n")
    with pytest.raises(UserError, match=r"is called with \(split, seed, \*\*data.arguments\): too many positional"):
        load_prompts(DataSettings(use=f"{file}:prompts"), "reason", "reason", "train", 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": (2.0, 3.0)}, r"rewards.format.clip: \[2, 3\] has nothing of the reward's range, \[0, 1\]"),
        ({"clip": (-2.0, 0.0)}, r"rewards.format.clip: \[-2, 0\] has nothing"),
        ({"pass_at": 5.0}, r"rewards.format.pass_at: 5 is outside of what counts, \[0, 1\]"),
        ({"clip": (0.0, 0.5), "pass_at": 0.6}, r"rewards.format.pass_at: 0.6 is outside of what counts, \[0, 0.5\]"),
    ],
)
def test_bounds_outside_of_a_reward_s_range_are_refused_once_it_is_made(settings: dict[str, Any], said: str) -> None:
    with RewardPool({"format": RewardSettings(use="unigrpo.rewards.format:Format", **settings)}) as pool:
        with pytest.raises(UserError, match=said):
            pool.wait_until_loaded()
        with pytest.raises(UserError, match=said):
            pool.score([rollout("a")])
