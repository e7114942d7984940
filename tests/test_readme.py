import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from unigrpo.cli.app import app
from unigrpo.settings.rewards import RewardSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_reward_of_the_readme_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unigrpo.plugin import resolve

    (tmp_path / "my_rewards.py").write_text(_block("python"))
    monkeypatch.chdir(tmp_path)
    settings = RewardSettings(**yaml.safe_load(_block("yaml"))["rewards"]["short"])
    reward: Any = resolve(settings.use)
    values = reward(prompts=["?"] * 3, completions=["so 42", "so 41", "42"], answer=["42", "42", None])
    assert values == [pytest.approx(0.999), 0.0, None]


def test_every_file_and_function_that_the_readme_names_exists() -> None:
    table = README[README.index("## From the paper") : README.index("## Limits")]
    places = re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", table)
    assert len(places) >= 10
    for name, function in places:
        candidates = [ROOT / "unigrpo" / name, ROOT / name, ROOT / "rewards" / name]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        assert path is not None, name
        for part in function.split(".") if function else ():
            assert re.search(rf"(def|class) {part}\b", path.read_text()), f"{name}: {function}"


def test_every_command_that_the_readme_shows_exists() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^    unigrpo ([\w-]+)", README, re.MULTILINE)) <= names


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200
