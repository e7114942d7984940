"""What a reward says of itself beyond its range: whether equal items have equal values, and which version it is."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from unigrpo import __version__
from unigrpo.rewards.plugin import AdaptedReward

_NOT_OF_THE_ITEM_ALONE = ("completion_ids", "trainer_state", "log_extra")
"""A reward that takes one of these may answer otherwise for an equal item, or do more than answer."""


def needs_whole_groups(reward: AdaptedReward) -> bool:
    """Return whether its class says ``needs_whole_groups = True``: a call then never splits a group."""
    return bool(getattr(reward.target, "needs_whole_groups", False))


def is_repeatable(reward: AdaptedReward) -> bool:
    """Return whether an item that was scored need not be scored again.

    What ``is_deterministic`` of the class or function says, where it says it. Else not for a coroutine function, which
    asks somebody else, and not for one that takes ``completion_ids``, ``trainer_state`` or ``log_extra``. Never where
    an item's value depends on its group.
    """
    if needs_whole_groups(reward):
        return False
    said = getattr(reward.target, "is_deterministic", None)
    if said is not None:
        return bool(said)
    if inspect.iscoroutinefunction(reward.target) or inspect.iscoroutinefunction(type(reward.target).__call__):
        return False
    return not set(_NOT_OF_THE_ITEM_ALONE).intersection(inspect.signature(reward.target).parameters)


def identity(reward: AdaptedReward) -> str:
    """Return what makes its values its own: ``version``, ``fingerprint`` (of weights), its source, and this package.

    A class or function may have the attribute ``version``; a class with weights sets ``fingerprint``, a hash of them.
    """
    target = reward.target
    parts = [f"{name}={getattr(target, name)}" for name in ("version", "fingerprint") if hasattr(target, name)]
    return ";".join([*parts, f"source={_source_hash(target)}", f"unigrpo={__version__}"])


def _source_hash(target: Any) -> str:
    try:
        file = inspect.getsourcefile(inspect.unwrap(target) if inspect.isroutine(target) else type(target))
    except TypeError:  # Written in C.
        file = None
    if file is None or not Path(file).is_file():
        return "none"
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
