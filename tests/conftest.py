import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    """One thread for torch in this process and its children, so that timings and sums do not depend on the machine."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


LONG = (
    "test_train test_rollout_pool test_reward_ray test_commands test_families test_reward_sharing "
    "test_correctness_time test_reward_matrix test_math_verify_suite test_reward_bombs test_correctness test_compiled "
    "test_released_shapes test_choices test_model_size test_reward_worker test_cli test_sft test_environments "
    "test_export test_packaging test_torchvision_hook test_family_choice test_ocr test_sandbox_http test_changes"
).split()
"""Files that take longest: they begin, so that no process ends long after the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the reference implementations' outputs."""
    return GOLDEN


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public test sets that the repository does not carry; tests that need it skip without it."""
    folder = os.environ.get("UNIGRPO_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNIGRPO_TEST_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray on this machine alone, started once for all tests that need a cluster; two full cores and a few spare."""
    import ray

    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False, _node_ip_address="127.0.0.1"
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def recipe_values(tmp_path: Path) -> dict[str, Any]:
    """A small recipe of the three tasks whose files all exist."""
    policy = tmp_path / "policy"
    policy.mkdir()
    config = json.loads((GOLDEN / "mmada_tiny" / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config))
    (policy / "model.safetensors").symlink_to(GOLDEN / "mmada_tiny" / "model.safetensors")
    tokenizer = tmp_path / "image_tokenizer"
    tokenizer.mkdir()
    (tokenizer / "model.safetensors").write_bytes(b"")
    (tmp_path / "bare").mkdir()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1", "answer": "2", "image": "picture.png"}\n')
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    (tmp_path / "my_rewards.py").write_text(
        "def length(*, prompts, completions, scale=1.0):\n"
        "    return [scale * len(completion) for completion in completions]\n"
    )

    def task(**sampling: Any) -> dict[str, Any]:
        return {
            "data": {"jsonl": "prompts.jsonl", "eval_jsonl": "prompts.jsonl"},
            "prompts_per_step": 4,
            "sampling": sampling,
        }

    return {
        "name": "small",
        "num_steps": 3,
        "group_size": 4,
        "policy": {"path": "policy", "image_tokenizer": "image_tokenizer", "dtype": "float32"},
        "tasks": {
            "reason": task(completion_length=16, num_denoising_steps=8, block_length=8),
            "understand": task(completion_length=8, num_denoising_steps=4),
            "imagine": task(completion_length=16, num_denoising_steps=4, schedule="cosine", guidance_scale=2.0),
        },
        "rewards": {"length": {"use": "my_rewards.py:length", "arguments": {"scale": 0.5}}},
        "learner": {"lr": 1e-4},
        "rollouts": {"rows_per_unit": 8},
    }


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a recipe beside the files that `recipe_values` names."""

    def write(values: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write
