"""A recipe of the tiny policy whose run takes a second, for tests of what happens around its steps."""

from pathlib import Path

import yaml

from unigrpo.quickstart.makers.policy import make_policy

REWARD = """
def early_letters(*, prompts, completions):
    return [sum(character in "abcdefghijklm" for character in text) / max(len(text), 1) for text in completions]
"""
SUMS = {"use": "unigrpo.quickstart.sums:Sums"}


def write_small(folder: Path) -> Path:
    """Write policy, reward and recipe of two steps with a checkpoint each; return the recipe's file."""
    make_policy(folder / "policy")
    (folder / "my_rewards.py").write_text(REWARD)
    sampling = {"completion_length": 8, "num_denoising_steps": 2}
    recipe = {
        "name": "small",
        "num_steps": 2,
        "group_size": 4,
        "num_threads": 1,
        "policy": {"path": "policy", "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "tasks": {"reason": {"data": SUMS, "prompts_per_step": 2, "sampling": sampling}},
        "rewards": {"letters": {"use": "my_rewards.py:early_letters"}},
        "learner": {"lr": 0.05, "lr_schedule": "constant", "num_inner_updates": 1},
        "evaluate": {"num_prompts": 8, "accuracy": {"reason": "letters"}},
        "checkpoint": {"every": 1, "keep": 4},
        "tracking": {"use": ["jsonl"], "rollouts_every": 0},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "small.yaml"


def write_supervised(folder: Path, policy: Path) -> Path:
    """Write a supervised recipe of three steps, each logged; return its file."""
    recipe = {
        "name": "stage",
        "num_steps": 3,
        "num_threads": 1,
        "policy": {"path": str(policy), "dtype": "float32", "image_size": 64},
        "tasks": {"reason": {"data": SUMS, "batch_size": 4, "completion_length": 12}},
        "lr": 0.002,
        "lr_schedule": "constant",
        "log_every": 1,
        "checkpoint": {"every": 0},
        "tracking": {"use": ["jsonl"]},
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "stage.yaml"


def comparable(records):
    """Return a run's records without what differs from run to run: times and memory."""
    kept = ("timing_s/", "perf/", "memory/")
    return [{name: value for name, value in record.items() if not name.startswith(kept)} for record in records]
