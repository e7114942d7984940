"""Whether what is called held out was trained on: files of the same content, and prompts that are asked in both."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unigrpo.data.sources import Asked
from unigrpo.files import sha256_of

_Key = tuple[bytes, tuple[int, ...]]


def held_out_problems(train: Mapping[Path, Iterable[Asked]], held_out: Mapping[Path, Iterable[Asked]]) -> Iterator[str]:
    """Yield a line for each file of held-out prompts that training asks, too.

    Prompts are equal where their turns are, before any template, and the content of their pictures.

    Args:
        train: every file of training prompts with what it asks.
        held_out: the same of evaluation.
    """
    asked = _Asked()
    for prompts in train.values():
        for one in prompts:
            asked.add(one)
    for path, prompts in held_out.items():
        twin = next((other for other in train if filecmp.cmp(path, other, shallow=False)), None)
        if twin is not None:
            same = "is also the file of training prompts" if path == twin else f"has the content of {twin}"
            yield f"{path} {same}: its scores are of prompts that were trained on"
            continue
        listed = list(prompts)
        found = [(one, first) for one in listed if (first := asked.first(one)) is not None]
        if found:
            one, first = found[0]
            yield (
                f"{path}: {len(found)} of {len(listed)} prompts are asked in training, too (the first: {one.where}, as "
                f"{first.where}); its scores are not of held-out prompts alone"
            )


@dataclass(kw_only=True, slots=True)
class _Asked:
    """What training asks, found by its turns and the sizes of its pictures; only equal sizes are read."""

    found: dict[_Key, list[Asked]] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)

    def add(self, one: Asked) -> None:
        known = self.found.setdefault(_key(one), [])
        if one.pictures or not known:
            known.append(one)

    def first(self, one: Asked) -> Asked | None:
        """Return the first that asks the same; None where none does."""
        wanted = self._pictures(one) if (others := self.found.get(_key(one), [])) else []
        return next((other for other in others if self._pictures(other) == wanted), None)

    def _pictures(self, one: Asked) -> list[str]:
        for path in one.pictures:
            if path not in self.digests:
                self.digests[path] = sha256_of(path)
        return [self.digests[path] for path in one.pictures]


def _key(one: Asked) -> _Key:
    turns = hashlib.blake2b(repr(one.turns).encode("utf-8", "backslashreplace"), digest_size=16).digest()
    return turns, tuple(path.stat().st_size for path in one.pictures)
