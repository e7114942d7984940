"""Length: no penalty up to a soft limit, then a line down to -1 at the hard limit."""

from __future__ import annotations

from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import TextUnit, checked_unit, units_of


class Length:
    """0 for a completion of at most ``max_length - soft_margin``, -1 beyond ``max_length``, a line between.

    Range: -1 to 0.
    Needs: text; for ``tokens`` the completion's token ids, which a run supplies (saved text has none: use ``words``).
    Source: DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).
    Cost: microseconds.
    Hacked by: an early end of sequence. It only ever punishes, so pair it with correctness.
    Recipe:
        length: {use: "unigrpo.rewards.length:Length", arguments: {max_length: 256, soft_margin: 64}, weight: 0.5}
    """

    range = (-1.0, 0.0)
    memory_limit_gb = 4.0
    wanted_columns = ()
    is_deterministic = True

    def __init__(self, *, max_length: int, soft_margin: int, unit: TextUnit = "tokens") -> None:
        """Set up.

        Args:
            max_length: beyond it the penalty is full.
            soft_margin: units before it over which the penalty grows; 0 is a step.
            unit: what is counted; tokens go up to and including the first end of sequence.

        Raises:
            ValueError: for a margin that is negative or longer than the length, or an unknown unit.
        """
        if not 0 <= soft_margin <= max_length:
            raise ValueError(f"soft_margin is {soft_margin}; give 0 to max_length, which is {max_length}")
        self._max_length = max_length
        self._soft_margin = soft_margin
        self._unit = checked_unit(unit)
        self.wants_completion_ids = unit == "tokens"

    def __call__(
        self, *, completions: Column, completion_ids: Column | None = None, **columns: object
    ) -> list[float | None]:
        """Return one value a completion; None for a picture, and for ``tokens`` where there are no ids."""
        ids = completion_ids or [None] * len(completions)
        units = [units_of(completion, tokens, self._unit) for completion, tokens in zip(completions, ids, strict=True)]
        return [None if counted is None else self._penalty(len(counted)) for counted in units]

    def _penalty(self, length: int) -> float:
        over = length - (self._max_length - self._soft_margin)
        if over <= 0:
            return 0.0
        return -1.0 if length > self._max_length else -over / self._soft_margin
