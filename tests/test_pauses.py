"""A reward's pauses are told to whoever listens, in order, and whatever ends them."""

from collections.abc import Mapping
from typing import Any

import pytest

from unigrpo.rewards.process.pauses import deadline_paused, reporting_pauses


def test_a_pause_is_told_with_its_limit_and_its_end() -> None:
    told: list[Mapping[str, Any]] = []
    with reporting_pauses(told.append):
        with deadline_paused(2.5):
            told.append({"inside": True})
        with pytest.raises(KeyError), deadline_paused(1.0):
            raise KeyError
    assert told == [{"pause_s": 2.5}, {"inside": True}, {"resume": True}, {"pause_s": 1.0}, {"resume": True}]


def test_nobody_is_told_outside_and_where_nobody_listens() -> None:
    told: list[Mapping[str, Any]] = []
    with reporting_pauses(told.append), reporting_pauses(None), deadline_paused(1.0):
        pass
    with reporting_pauses(told.append):
        pass
    with deadline_paused(1.0):
        pass
    assert told == []
