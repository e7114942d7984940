"""Prompts of a user's class or function, checked one by one. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from unigrpo.data.jsonl import columns_problem, reserved_problem
from unigrpo.documents import half_problem, is_deep
from unigrpo.errors import UserError
from unigrpo.pictures import PictureError, as_rgb
from unigrpo.settings.tasks import DataSettings
from unigrpo.types import Prompt, TaskKind

Demonstration = str | Image.Image


class GeneratedPrompts:
    """Prompts of what ``data.use`` made, given the name of their task.

    It is indexed, ``source[index]`` from 0, and gives the same prompt for a number in every process: a list, or a class
    with ``__getitem__``. Where it ends it says so by ``num_prompts`` or by its length; training then begins anew, in
    the same order. One that says neither never ends.
    """

    def __init__(self, settings: DataSettings, source: Any, task: str, kind: TaskKind, *, repeats: bool) -> None:
        """Wrap a source that was made from ``data.use``; ``repeats`` is whether it begins anew at its end.

        Raises:
            UserError: if it cannot be indexed, or is empty.
        """
        use = self._use = str(settings.use)
        self._image_fit, self._max_pixels = settings.image_fit, settings.max_pixels
        self._source, self._task, self._kind, self._repeats = source, task, kind, repeats
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
            UserError: if there is none, it is no ``Prompt``, its kind is not the task's, a picture of it cannot be
                used, a reward could not get one of its columns, or one has half of a character in it.
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
        said = {"its prompt": [message.text for message in prompt.messages], "its id": prompt.id}
        if problem := columns_problem(said | {"its answer": prompt.answer} | dict(prompt.columns)):
            raise UserError(f"{self._use}[{place}]: {problem}")
        messages = tuple(
            replace(message, images=tuple(self._rgb(picture, prompt) for picture in message.images))
            for message in prompt.messages
        )
        return replace(prompt, task=self._task, messages=messages, image_fit=prompt.image_fit or self._image_fit)

    def _rgb(self, picture: Any, prompt: Prompt) -> Image.Image:
        if not isinstance(picture, Image.Image | np.ndarray):
            given = type(picture).__name__
            raise UserError(f"{self._use}: prompt {prompt.id!r} has a {given} for a picture; give PIL images or arrays")
        try:
            return as_rgb(picture, self._max_pixels)
        except PictureError as error:
            raise UserError(f"{self._use}: prompt {prompt.id!r}: {error}") from error

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return the source's completion of a prompt.

        Raises:
            UserError: if the source has none to give, or half of a character in it.
        """
        demonstrate = getattr(self._source, "demonstration", None)
        if demonstrate is None:
            raise UserError(f"{self._use} has no method demonstration(prompt, generator, noise); sft needs one")
        completion: Demonstration = demonstrate(prompt, generator, noise)
        if not isinstance(completion, str):
            return self._rgb(completion, prompt)
        if problem := half_problem(completion):
            raise UserError(f"{self._use}: the demonstration of prompt {prompt.id!r} has {problem}")
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
