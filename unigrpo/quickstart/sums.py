"""Two-digit sums with a written-out carry: the reasoning task of the tiny policy."""

from __future__ import annotations

import hashlib

import numpy as np

from unigrpo.errors import UserError
from unigrpo.types import Message, Prompt

_LOW, _HIGH = 10, 99
_NUM_SLOTS = 9


class Sums:
    """Prompts such as ``37+48=``, whose demonstration is ``<think>15,08</think>85``.

    The think part is the sum of the units, then the sum of the tens with the carry, each of two digits so that every
    token has its place. Two pairs in nine are held out, by a hash of the pair: one for the reported test, one for the
    validation by which settings are chosen. Training never shows either.

    Example:
        >>> source = Sums("train", seed=0)
        >>> source[0].kind
        'reason'
    """

    def __init__(self, split: str, seed: int = 0, held_out: str = "test") -> None:
        """List the pairs of the split.

        "train" is endless, a new order each epoch; "eval" is each pair once, in a fixed order, ``held_out`` "test" or
        "validation".

        Raises:
            UserError: if the split or the held-out part is unknown.
        """
        if split not in ("train", "eval"):
            raise UserError(f"split {split!r} is unknown; it is 'train' or 'eval'")
        if held_out not in ("test", "validation"):
            raise UserError(f"held_out {held_out!r} is unknown; it is 'test' or 'validation'")
        self.split = split
        self.seed = seed
        pairs = [(a, b) for a in range(_LOW, _HIGH + 1) for b in range(_LOW, _HIGH + 1)]
        wanted = "train" if split == "train" else held_out
        self._pairs = [pair for pair in pairs if part_of(*pair) == wanted]
        self.num_prompts = len(self._pairs) if split == "eval" else None
        self._order_of: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order.

        Raises:
            IndexError: past the last held-out pair, or below 0.
        """
        if index < 0 or (self.num_prompts is not None and index >= self.num_prompts):
            raise IndexError(f"prompt {index} of {self.num_prompts or 'an endless split, counted from 0'}")
        epoch, place = divmod(index, len(self._pairs))
        if self._order_of is None or self._order_of[0] != epoch:
            self._order_of = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self._pairs))
        a, b = self._pairs[self._order_of[1][place]]
        message = Message(role="user", text=f"{a}+{b}=")
        return Prompt(
            id=f"sum-{a}+{b}", kind="reason", messages=(message,), answer=str(a + b), columns={"a": a, "b": b}
        )

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float) -> str:
        """Return a completion with the right think part; with probability ``noise`` one answer digit is wrong."""
        a, b = prompt.columns["a"], prompt.columns["b"]
        units = a % 10 + b % 10
        tens = a // 10 + b // 10 + units // 10
        answer = list(str(a + b))
        if generator.random() < noise:
            place = int(generator.integers(len(answer)))
            answer[place] = str((int(answer[place]) + int(generator.integers(1, 10))) % 10)
        return f"<think>{units:02},{tens:02}</think>{''.join(answer)}"


def part_of(a: int, b: int) -> str:
    """Return "train", "validation" or "test": where a sum belongs, whichever way round it is written."""
    key = f"{min(a, b)}+{max(a, b)}".encode()
    slot = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") % _NUM_SLOTS
    return {0: "validation", 1: "test"}.get(slot, "train")
