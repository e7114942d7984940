"""Every family on a random checkpoint of its own layout: it keeps the contracts, and it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from unigrpo.models import load_policy
from unigrpo.testing.conformance import check_policy, check_sampler
from unigrpo.testing.make_tiny import make_tiny
from unigrpo.testing.tiny_families import TINY_FAMILIES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in TINY_FAMILIES:
        make_tiny(family, folder / family)
    return folder


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_policy_keeps_its_contract(checkpoints: Path, family: str) -> None:
    check_policy(checkpoints / family)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_sampling_keeps_its_contract(checkpoints: Path, family: str) -> None:
    check_sampler(load_policy(checkpoints / family, dtype="float32"))
