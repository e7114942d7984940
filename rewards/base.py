"""What a reward is: TRL's call, plus a range, so that runs can be compared.

A reward is called as ``reward(prompts=[...], completions=[...], **columns) -> list[float | None]``. ``prompts`` are the
user texts; a completion is text, or a PIL image for a generated picture; ``images`` is the list of each prompt's own
pictures; every column of the data set arrives by name (``answer=[...]``). None says that the reward does not apply;
``Failed(reason)`` in a number's place says that this one item could not be scored, and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

Column: TypeAlias = Sequence[Any]
"""What a call has by one name: one entry a completion."""


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of a value: the reward could not score this item, and the answer is not to blame.

    It is an ERROR of that item alone, which ``on_error:`` of the recipe rules. An exception is for the whole call: it
    makes the caller try the call in parts, which a reward that asks a server does not want.
    """

    reason: str


class TimedOut(float):
    """In place of a value: scoring the answer did not end, and the answer is to blame.

    It is this number, the range's lowest, with the status TIMEOUT, and is never kept for later. Return it only for time
    that the answer itself took, such as CPU seconds: one that merely waited is ``Failed``.
    """

    reason: str

    def __new__(cls, value: float, reason: str) -> TimedOut:
        """Make the number."""
        made = super().__new__(cls, value)
        made.reason = reason
        return made


@runtime_checkable
class Reward(Protocol):
    """A reward with settings or weights. A plain function of the same call is a reward, too (its range is [0, 1])."""

    range: tuple[float, float]
    """Lowest and highest value: an answer that makes a verifier hang gets the lowest."""

    # A class may say ``needed_columns = (("nums", "target"), ("answer",))``: groups of the data's columns, of which one
    # must be there; a recipe whose data has none is refused before it runs.

    def __call__(self, *, prompts: Column, completions: Column, **columns: Any) -> list[Any]:
        """Return one number a completion; None where the reward does not apply, ``Failed`` where it could not score.

        Typed as a list of anything so that both ``list[float | None]``, which most rewards return, and a list with
        ``Failed`` in it are rewards for a type checker.
        """
