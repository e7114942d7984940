from pathlib import Path

import pytest
from reward_docs import SECTIONS, RewardDoc, read_rewards, render

from unigrpo.plugin import locate
from unigrpo.settings.rewards import RewardSettings

ROOT = Path(__file__).parent.parent
DOCS = read_rewards()
SOURCE = '''
class Bare:
    """No sections."""

    def __call__(self, *, completions, **columns):
        return [0.0 for _ in completions]


class _Hidden:
    def __call__(self, *, completions):
        return []


def helper(completions):
    """Not a reward: it has no recipe."""


async def scored(completions):
    """Say :func:`how`.

    More of it.

    Range: 0 to 1; or (so; here) more.
    Needs: text,
        in two lines.
    Source: own.
    Cost: none.
    Hacked by: all.
    Recipe:
        scored:
          use: "x.py:scored"
          weight: 0.5

    Example:
        >>> scored
    """
'''


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_every_reward_has_the_sections_in_order(doc: RewardDoc) -> None:
    assert doc.description
    assert doc.missing == []


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_the_recipe_entry_of_a_reward_is_valid_and_names_it(doc: RewardDoc) -> None:
    (entry,) = doc.entry.values()
    settings = RewardSettings.model_validate(entry)
    assert settings.use == f"unigrpo.rewards.{doc.module}:{doc.name}"
    located = locate(settings.use)
    assert located.parameters is None or set(settings.arguments) <= located.parameters
    assert "checkpoints/" not in str(entry)  # Weights by their name on the hub: nobody else has our folders.


def test_each_file_that_is_no_contract_is_found_by_its_call() -> None:
    names = {doc.module for doc in DOCS}
    assert {"correctness", "format", "scene", "jpeg_size", "clip_alignment", "adapters"} <= names
    assert not {"base", "plugin", "worker", "pool"} & names


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert page == render(DOCS), "run: python docs/generate/reward_docs.py > docs/rewards.md"


def test_sections_are_read_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    bare, scored = read_rewards(tmp_path)
    assert bare.missing == list(SECTIONS)
    assert (scored.missing, scored.sections["Needs"]) == ([], "text, in two lines.")
    assert scored.entry == {"scored": {"use": "x.py:scored", "weight": 0.5}}
    assert "Say `how`." in render([scored])
    assert "| [scored](#scored) | 0 to 1 | text, in two lines | none |" in render([scored])
    with pytest.raises(ValueError, match=r"mine:Bare: Recipe is None; wanted `name: \{use: ...\}`"):
        _ = bare.entry
