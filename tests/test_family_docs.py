"""The page about the families says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_docs import render

from unigrpo.models.families import FOLDER, family_name, known_families
from unigrpo.models.text_policy import TextPolicy
from unigrpo.plugin import choice
from unigrpo.testing.tiny.layouts import layouts

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == render(), "run: python docs/generate/family_docs.py > docs/families.md"


def test_every_family_has_a_layout_whose_config_asks_for_it() -> None:
    assert {layout.family for layout in layouts().values()} == known_families().keys()
    assert all(family_name(layout.config) == layout.family for layout in layouts().values())


@pytest.mark.parametrize("name", known_families())
def test_every_file_of_the_folder_is_a_policy(name: str) -> None:
    assert issubclass(choice(name, FOLDER), TextPolicy)


@pytest.mark.parametrize("family", [short for short, layout in layouts().items() if layout.golden])
def test_golden_of_a_row_is_there_and_used(family: str) -> None:
    golden = layouts()[family].golden
    assert golden is not None
    assert (ROOT / "tests" / "golden" / golden / "config.json").is_file()
    assert any(golden in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
