"""Repetition: a penalty for the share of n-grams that were there before."""

from __future__ import annotations

from collections.abc import Sequence

from unigrpo.rewards.base import Column
from unigrpo.rewards.text.answers import TextUnit, checked_unit, units_of


class Repetition:
    """``max_penalty`` times (1 - distinct n-grams / all n-grams); 0 for a text shorter than one n-gram.

    Range: ``max_penalty`` to 0.
    Needs: text; for ``tokens`` the completion's token ids, which a run supplies (saved text has none: use ``words``).
    Source: arXiv 2502.03373, appendix C.2; TRL counts tokens as here, open-r1 lower-cased words.
    Cost: 0.2 ms for 1,000 tokens.
    Hacked by: short text. It only ever punishes, so pair it with correctness.
    Recipe:
        repetition: {use: "unigrpo.rewards.repetition:Repetition", arguments: {ngram_size: 3}, weight: 0.5}
    """

    memory_limit_gb = 4.0
    wanted_columns = ()
    is_deterministic = True

    def __init__(self, *, ngram_size: int = 3, max_penalty: float = -1.0, unit: TextUnit = "tokens") -> None:
        """Set up.

        Args:
            ngram_size: units in a row that are compared.
            max_penalty: what a text of one repeated n-gram tends to.
            unit: ``tokens``, lower-cased ``words``, or ``characters`` for scripts without blanks.

        Raises:
            ValueError: for a size below 1, a penalty that is not negative, or an unknown unit.
        """
        if ngram_size < 1:
            raise ValueError(f"ngram_size is {ngram_size}; give 1 or more")
        if not -1e6 < max_penalty < 0:
            raise ValueError(f"max_penalty is {max_penalty}; give a negative number")
        self.range = (float(max_penalty), 0.0)
        self._ngram_size = ngram_size
        self._unit = checked_unit(unit)
        self.wants_completion_ids = unit == "tokens"

    def __call__(
        self, *, completions: Column, completion_ids: Column | None = None, **columns: object
    ) -> list[float | None]:
        """Return one value a completion; None for a picture, and for ``tokens`` where there are no ids."""
        ids = completion_ids or [None] * len(completions)
        values: list[float | None] = []
        for completion, tokens in zip(completions, ids, strict=True):
            units = units_of(completion, tokens, self._unit, is_lowered=True)
            values.append(None if units is None else self.range[0] * repeated_fraction(units, self._ngram_size))
        return values


def repeated_fraction(units: Sequence[int | str], ngram_size: int) -> float:
    """Return 1 - distinct n-grams / all n-grams."""
    num_ngrams = len(units) - ngram_size + 1
    if num_ngrams <= 0:
        return 0.0
    return 1 - len({tuple(units[start : start + ngram_size]) for start in range(num_ngrams)}) / num_ngrams
