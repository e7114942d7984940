"""The whole numbers below 100 in words."""

from __future__ import annotations

_BELOW_20 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

NUMBER_WORDS = {word: value for value, word in enumerate(_BELOW_20)}
NUMBER_WORDS |= {word: 10 * ten for ten, word in enumerate(_TENS, start=2)}
NUMBER_WORDS |= {
    f"{word}-{_BELOW_20[one]}": 10 * ten + one for ten, word in enumerate(_TENS, start=2) for one in range(1, 10)
}
NUMBER_WORD = f"(?:{'|'.join(sorted(NUMBER_WORDS, key=len, reverse=True))})"
"""A pattern of any of them, the longest first."""
