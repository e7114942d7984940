"""A reward's pauses are told to whoever listens, in order, and whatever ends them."""

from collections.abc import Mapping
from typing import Any

import pytest

from unigrpo.rewards.process.pauses import announced, paused


def test_a_pause_is_told_with_its_limit_and_its_end() -> None:
    told: list[Mapping[str, Any]] = []
    with announced(told.append):
        with paused(2.5):
            told.append({"inside": True})
        with pytest.raises(KeyError), paused(1.0):
            raise KeyError
    assert told == [{"pause_s": 2.5}, {"inside": True}, {"resume": True}, {"pause_s": 1.0}, {"resume": True}]


def test_nobody_is_told_outside_and_where_nobody_listens() -> None:
    told: list[Mapping[str, Any]] = []
    with announced(told.append), announced(None), paused(1.0):
        pass
    with announced(told.append):
        pass
    with paused(1.0):
        pass
    assert told == []
