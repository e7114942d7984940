import ast
import math
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from pydantic import BaseModel, ValidationError

import unigrpo.settings
from unigrpo.settings.base import Choice
from unigrpo.settings.learning import KlChoice, LearnerSettings
from unigrpo.settings.rewards import RewardSettings

ROOT = Path(__file__).parent.parent
SECTIONS = [
    value
    for module in map(
        import_module, (f"unigrpo.settings.{one.name}" for one in iter_modules(unigrpo.settings.__path__))
    )
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
]
UNREAD_BY_NAME = {"description"}
"""Shown to people only, by the report, which reads recipes as plain mappings."""


def _names_read() -> set[str]:
    """Every attribute that package code outside the settings reads."""
    names: set[str] = set()
    for folder in ("unigrpo", "rewards", "rollouts"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name != "settings":
                tree = ast.parse(path.read_text())
                names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names


def test_every_setting_is_read_by_code() -> None:
    names = _names_read() | UNREAD_BY_NAME
    unread = [f"{one.__name__}.{field}" for one in SECTIONS for field in one.model_fields if field not in names]
    assert unread == []


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_refuses_unknown_keys_and_changes(section: type[BaseModel]) -> None:
    is_choice = issubclass(section, Choice)  # the class that it names says which keys there are
    assert section.model_config.get("extra") == ("allow" if is_choice else "forbid")
    assert section.model_config.get("frozen") is True


def test_values_do_not_change_after_loading() -> None:
    learner = LearnerSettings(lr=1e-3)
    with pytest.raises(ValidationError, match="frozen"):
        learner.lr = 1.0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_of_every_section_are_finite(number: float) -> None:
    for values in ({"weight": number}, {"clip": (0.0, number)}, {"pass_at": number}, {"timeout_s": number}):
        with pytest.raises(ValidationError, match="finite number"):
            RewardSettings(use="x:y", **values)
    with pytest.raises(ValidationError, match="finite number"):
        KlChoice(coef=number)
