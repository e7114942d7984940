"""Two-digit sums with a written-out carry: the reasoning task of the tiny policy."""

from __future__ import annotations

import hashlib

import numpy as np

from unigrpo.types import Message, Prompt

_LOW, _HIGH = 10, 99
_HELD_OUT_IN = 9


class Sums:
    """Prompts such as ``37+48=``, whose demonstration is ``<think>15,08</think>85``.

    The think part is the sum of the units, then the sum of the tens with the carry, each of two digits so that every
    token has its place. One pair in nine is held out, by a hash of the pair: training never shows it.

    Example:
        >>> source = Sums("train", seed=0)
        >>> source[0].task
        'reason'
    """

    def __init__(self, split: str, seed: int = 0) -> None:
        """List the pairs of the split.

        Args:
            split: "train" (endless, a new order each epoch) or "eval" (a fixed order, each pair once).
            seed: keys the order.

        Raises:
            ValueError: if the split is neither.
        """
        if split not in ("train", "eval"):
            raise ValueError(f"split {split!r} is unknown; it is 'train' or 'eval'")
        self.split = split
        self.seed = seed
        pairs = [(a, b) for a in range(_LOW, _HIGH + 1) for b in range(_LOW, _HIGH + 1)]
        self._pairs = [pair for pair in pairs if is_held_out(*pair) == (split == "eval")]
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
            id=f"sum-{a}+{b}", task="reason", messages=(message,), answer=str(a + b), columns={"a": a, "b": b}
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


def is_held_out(a: int, b: int) -> bool:
    """Return whether the sum belongs to the evaluation split, whichever way round it is written."""
    key = f"{min(a, b)}+{max(a, b)}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") % _HELD_OUT_IN == 0
