"""The page about the families says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_docs import RELEASED, render

from unigrpo.models.families import FAMILIES, MASKED_LM_FAMILY, family_name, import_family
from unigrpo.testing.tiny.families import TINY_FAMILIES

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == render(), "run: python docs/generate/family_docs.py > docs/families.md"


def test_every_family_has_a_tiny_checkpoint_and_a_row() -> None:
    made = {family_name(entry.config) for entry in TINY_FAMILIES.values()}
    assert made == {*FAMILIES.values(), MASKED_LM_FAMILY}
    assert RELEASED.keys() == TINY_FAMILIES.keys()


@pytest.mark.parametrize("name", sorted(set(FAMILIES.values())))
def test_every_name_of_the_table_is_a_class(name: str) -> None:
    assert import_family(name).__name__ == name.partition(":")[2]


@pytest.mark.parametrize("family", [family for family, released in RELEASED.items() if released.golden])
def test_golden_of_a_row_is_there_and_used(family: str) -> None:
    golden = RELEASED[family].golden
    assert golden is not None
    assert (ROOT / "tests" / "golden" / golden / "config.json").is_file()
    assert any(golden in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
