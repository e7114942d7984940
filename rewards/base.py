"""What a reward is: TRL's call, plus a range, so that runs can be compared.

A reward is called as ``reward(prompts=[...], completions=[...], **columns) -> list[float | None]``. ``prompts`` are the
user texts; a completion is text, or a PIL image for a generated picture; ``images`` is the list of each prompt's own
pictures; every column of the data set arrives by name (``answer=[...]``). None says that the reward does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Reward(Protocol):
    """A reward with settings or weights. A plain function of the same call is a reward, too (its range is [0, 1])."""

    range: tuple[float, float]
    """Lowest and highest value: an answer that makes a verifier hang gets the lowest."""

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one value a completion; None where the reward does not apply."""
