"""Our ImageReward beside the original package, which runs in an environment of its own, built by pip for the test."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unigrpo.rewards.image_reward import ImageReward
from unigrpo.rewards.runtime.isolation import outcomes_of
from unigrpo.rewards.runtime.process import RewardLoadError, RewardProcess
from unigrpo.settings.rewards import EnvSettings, RewardSettings

GOLDEN = Path(__file__).parent / "golden" / "imagereward_tiny"
REQUIREMENTS = [
    "image-reward==1.5",
    "clip-anytorch==2.6.0",
    "setuptools<81",
    "torch==2.13.*",
    "torchvision==0.28.0",
    "transformers==4.49.0",
]
PROMPTS = [
    "a photo of a red cube on the table",
    "",
    "two cats and a dog at night",
    "unknownwordzz 3 4 5!",
    "blue light",
]


def pictures() -> list[Image.Image]:
    """Smooth and noisy pictures of several shapes, other than the golden's."""
    generator = np.random.default_rng(5)
    found = []
    for width, height in ((256, 256), (224, 224), (300, 211), (97, 160), (512, 384)):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
        noise = generator.integers(-20, 21, (height, width, 3))
        found.append(Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)))
    return found


@pytest.mark.slow
def test_the_original_package_in_its_own_environment_gives_our_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ.get("UNIGRPO_TEST_ENVS") != "1":
        pytest.skip("UNIGRPO_TEST_ENVS is not 1: this test builds an environment of 1.5 GB by pip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {"checkpoint": str(GOLDEN / "ImageReward_tiny.pt"), "vocabulary": str(GOLDEN / "tokenizer")}
    packaged = RewardSettings(
        use="image_reward_package.py:PackagedImageReward",
        arguments=files
        | {
            "med_config": str(GOLDEN / "med_config_tiny.json"),
            "vision": {"patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 4},
            "text_width": 48,
        },
        env=EnvSettings(requirements=REQUIREMENTS),
        timeout_s=300.0,
    )
    shown = pictures()
    columns = {
        "prompts": [prompt for prompt in PROMPTS for _ in shown],
        "completions": [picture for _ in PROMPTS for picture in shown],
    }
    process = RewardProcess(settings=packaged, folder=Path(__file__).parent, start_timeout_s=1200.0)
    process.add("packaged", packaged)
    message = {"reward": "packaged", "columns": columns, "step": 0}
    try:
        theirs = [outcome.value for outcome in outcomes_of(process.exchange(message, timeout_s=300.0)).outcomes]
    except RewardLoadError as error:
        if "Could not find a version" in str(error) or "connection" in str(error).lower():
            pytest.skip(f"the package index is not reachable: {error}")
        raise
    finally:
        process.close()
    ours = ImageReward(**files, low=-100.0, high=100.0, num_vision_heads=4, num_text_heads=6)(**columns)
    wanted, given = np.array(theirs, dtype=np.float64), np.array(ours, dtype=np.float64)
    assert wanted.std() > 1.0
    apart = np.abs(given - wanted).max()
    print(f"{len(wanted)} pairs, scores {wanted.min():.2f} to {wanted.max():.2f}, at most {apart:.2e} apart")
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-4)
