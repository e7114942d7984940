"""Prompts of a user's class or function, checked one by one. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from unigrpo.data.jsonl import reserved_problem
from unigrpo.documents import is_deep
from unigrpo.errors import UserError
from unigrpo.types import Prompt, TaskKind

Demonstration = str | Image.Image


class GeneratedPrompts:
    """Prompts of what ``data.use`` made, given the name of their task.

    It is indexed, ``source[index]`` from 0, and gives the same prompt for a number in every process: a list, or a class
    with ``__getitem__``. Where it ends it says so by ``num_prompts`` or by its length; training then begins anew, in
    the same order. One that says neither never ends.
    """

    def __init__(self, use: str, source: Any, task: str, kind: TaskKind, *, repeats: bool) -> None:
        """Wrap a source that was made from ``use``; ``repeats`` is whether it begins anew at its end.

        Raises:
            UserError: if it cannot be indexed, or is empty.
        """
        self._use, self._source, self._task, self._kind, self._repeats = use, source, task, kind, repeats
        if not hasattr(source, "__getitem__") or isinstance(source, str | bytes | dict):
            more = ", which can only be iterated: return a list of it" if hasattr(source, "__iter__") else ""
            raise UserError(
                f"{use} made a {type(source).__name__}{more}; wanted a list of prompts, or an object whose [index] is "
                "the prompt of that number"
            )
        self._num_prompts = self._count()

    @property
    def num_prompts(self) -> int | None:
        """Return the source's own count; None where it states none."""
        return self._num_prompts

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order.

        Raises:
            UserError: if there is none, it is no ``Prompt``, its kind is not the task's, or a reward could not get one
                of its columns.
        """
        place = index % self._num_prompts if self._repeats and self._num_prompts else index
        try:
            prompt = self._source[place]
        except LookupError as error:
            raise UserError(
                f"{self._use}[{place}]: {type(error).__name__}: {error}; if it ends there, let its num_prompts or its "
                "length say how many prompts it has"
            ) from error
        if not isinstance(prompt, Prompt):
            raise UserError(f"{self._use}[{place}] is a {type(prompt).__name__}; return a unigrpo.types.Prompt")
        if prompt.kind != self._kind:
            raise UserError(
                f"{self._use} makes prompts of kind {prompt.kind!r}, but the task {self._task!r} is of kind "
                f"{self._kind!r}"
            )
        if problem := reserved_problem(prompt.columns):
            raise UserError(f"{self._use}[{place}]: {problem}")
        if is_deep([prompt.answer, prompt.columns]):
            raise UserError(f"{self._use}[{place}]: its answer or columns are nested too deeply; write them flatter")
        return replace(prompt, task=self._task)

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return the source's completion of a prompt.

        Raises:
            UserError: if the source has none to give.
        """
        demonstrate = getattr(self._source, "demonstration", None)
        if demonstrate is None:
            raise UserError(f"{self._use} has no method demonstration(prompt, generator, noise); sft needs one")
        completion: Demonstration = demonstrate(prompt, generator, noise)
        return completion

    def _count(self) -> int | None:
        count = getattr(self._source, "num_prompts", None)
        if count is None and hasattr(self._source, "__len__"):
            count = len(self._source)
        if count is None:
            return None
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise UserError(f"num_prompts of {self._use} is {count!r}; wanted how many prompts it has, or None: no end")
        if count < 1:
            raise UserError(f"{self._use} has {count} prompts; wanted at least one")
        return int(count)
