"""No prompt is longer than what the policy was made for: counted with its pictures, before anything is generated.

A prompt that is too long is refused by file and line, left out, or cut: then its user's text loses its beginning, while
the template, the pictures and the other turns stay whole.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.data.generated import GeneratedPrompts
from unigrpo.data.sources import JsonlPrompts, PromptSource
from unigrpo.errors import UserError
from unigrpo.types import Prompt

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.settings.tasks import DataSettings

_LOGGER = logging.getLogger(__name__)

PICTURE_MARK = "<image>"
"""Where families that read pixels put a picture in a text: a cut keeps it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLimit:
    """How many tokens the prompts of a task may have, and by whose word."""

    policy: Policy
    num_tokens: int
    reason: str
    frames: dict[Hashable, int] = field(default_factory=dict)
    """Tokens of prompts without their texts, by roles and pictures."""

    @classmethod
    def of(cls, policy: Policy, settings: DataSettings, task: str, completion_length: int) -> PromptLimit | None:
        """Return a task's limit; None where neither the recipe nor the checkpoint gives one, or it has no tokenizer.

        Raises:
            UserError: a completion that leaves no room for a prompt.
        """
        context, asked = policy.context_length, settings.max_prompt_tokens
        if policy.tokenizer is None or (context is None and asked is None):
            return None
        room = None if context is None else context - completion_length
        if room is not None and room < 1:
            raise UserError(
                f"task {task!r} has completions of {completion_length} tokens, and rows of {policy.source} have "
                f"{context}: no room for a prompt; lower completion_length"
            )
        if asked is not None and (room is None or asked <= room):
            return cls(policy=policy, num_tokens=asked, reason=f"data.max_prompt_tokens of task {task!r}")
        reason = f"what the {context} tokens of a row of {policy.source} leave beside {completion_length} to complete"
        return cls(policy=policy, num_tokens=int(room or 0), reason=reason)

    def excess(self, prompt: Prompt) -> int | None:
        """Return a prompt's tokens, where they are too many; None where they are not."""
        texts = [message.text for message in prompt.messages]
        form = (prompt.kind, *((each.role, *(image.size for image in each.images)) for each in prompt.messages))
        if form not in self.frames:
            empty = replace(prompt, messages=tuple(replace(message, text="") for message in prompt.messages))
            self.frames[form] = self.policy.num_prompt_tokens(empty)
        if sum(map(most_tokens, texts)) <= self.num_tokens - self.frames[form]:
            return None  # and was not tokenized
        num_tokens = self.policy.num_prompt_tokens(prompt)
        return num_tokens if num_tokens > self.num_tokens else None

    def error(self, where: str, num_tokens: int) -> UserError:
        """Return what is said of a prompt that is too long."""
        return UserError(
            f"{where}: the prompt has {num_tokens} tokens, its pictures counted, over {self.num_tokens} "
            f"({self.reason}); shorten it, or set data.too_long to skip or cut"
        )


def within_limits(
    source: PromptSource,
    policy: Policy,
    settings: DataSettings,
    *,
    task: str,
    completion_length: int,
    is_taught: bool = False,
) -> PromptSource:
    """Return a task's prompts, none of them too long for the policy.

    A file is read through now, so that nothing is refused in mid-run; prompts that a class makes are looked at as they
    come.

    Args:
        source: of `unigrpo.data.sources.load_prompts`.
        policy: counts tokens.
        settings: the recipe's ``data`` section, which has the limit and what becomes of a prompt over it.
        task: its name.
        completion_length: open tokens of a row.
        is_taught: whether the demonstrations are learnt from, which must fit into ``completion_length`` then.

    Raises:
        UserError: a prompt or a demonstration that is too long, or no prompt that is not.
    """
    limit = PromptLimit.of(policy, settings, task, completion_length)
    if isinstance(source, GeneratedPrompts):
        return source if limit is None else _Watched(source, limit, settings)
    if not isinstance(source, JsonlPrompts):
        return source
    skipped: dict[str, UserError] = {}
    for id_, where, prompt in source.sketches():
        try:
            problem = None if limit is None else _too_long(source, limit, id_, where, prompt, settings)
        except UserError as error:  # what the policy cannot read at all
            raise UserError(f"{where}: {error}") from error
        if problem is None and is_taught:
            problem = _too_much_taught(source, policy, prompt, where, completion_length)
        if problem is None:
            continue
        if settings.too_long != "skip":
            raise problem
        skipped[id_] = problem
    if skipped:
        num_left = source.drop(skipped)
        if not num_left:
            raise UserError(f"no prompt of task {task!r} is left; {next(iter(skipped.values()))}")
        total = len(skipped) + num_left
        _LOGGER.warning("task %s: %d of %d prompts are too long and left out", task, len(skipped), total)
    return source


def _too_long(
    source: JsonlPrompts, limit: PromptLimit, id_: str, where: str, prompt: Prompt, settings: DataSettings
) -> UserError | None:
    """Return what is wrong with a row's prompt; cut it where that is asked for and mends it."""
    num_tokens = limit.excess(prompt)
    if num_tokens is None:
        return None
    if settings.too_long == "cut":
        texts = _cut(source.texts(id_), limit, lambda texts: source.sketch(id_, texts))
        if texts is not None:
            source.write(id_, texts)
            return None
    return limit.error(where, num_tokens)


class _Watched(GeneratedPrompts):
    """Prompts of a user's class, each looked at as it comes."""

    def __init__(self, source: GeneratedPrompts, limit: PromptLimit, settings: DataSettings) -> None:
        """Take the source, its limit and what becomes of a prompt over it."""
        vars(self).update(vars(source))
        self._limit, self._settings = limit, settings
        if settings.too_long == "skip":
            raise UserError(
                f"data.too_long is skip, and the prompts of {settings.use} are known by number only; let the class "
                "leave them out, or set it to refuse or cut"
            )

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order, cut where that is asked for.

        Raises:
            UserError: if it is too long.
        """
        prompt = super().__getitem__(index)
        num_tokens = self._limit.excess(prompt)
        if num_tokens is None:
            return prompt
        turns = [(message.role, message.text) for message in prompt.messages]

        def written(texts: Sequence[str]) -> Prompt:
            pairs = zip(prompt.messages, texts, strict=True)
            return replace(prompt, messages=tuple(replace(message, text=text) for message, text in pairs))

        texts = _cut(turns, self._limit, written) if self._settings.too_long == "cut" else None
        if texts is None:
            raise self._limit.error(f"{self._settings.use}[{index}]", num_tokens)
        return written(texts)


def most_tokens(text: str) -> int:
    """Return a number of tokens that no tokenizer exceeds: one a byte, of the text as normalizers take it apart."""
    return len(unicodedata.normalize("NFKD", text).encode("utf-8", "surrogatepass"))


def _cut(
    turns: Sequence[tuple[str, str]], limit: PromptLimit, written: Callable[[Sequence[str]], Prompt]
) -> list[str] | None:
    """Return the texts of a conversation without as much of the user's as must go, the oldest first.

    Args:
        turns: role and text.
        limit: of the whole prompt.
        written: makes the prompt of other texts.

    Returns:
        None where it is too long without any.
    """
    texts = [text for _, text in turns]

    def fits(place: int, start: int) -> bool:
        trial = [*texts[:place], _without_beginning(texts[place], start), *texts[place + 1 :]]
        return limit.excess(written(trial)) is None

    for place, (role, text) in enumerate(turns):
        if role != "user":
            continue
        if fits(place, len(text)):
            least, most = 0, len(text)
            while most - least > 1:
                middle = (least + most) // 2
                least, most = (least, middle) if fits(place, middle) else (middle, most)
            texts[place] = _without_beginning(text, most)
            return texts if texts[place].strip() else None
        texts[place] = _without_beginning(text, len(text))
    return None


def _without_beginning(text: str, start: int) -> str:
    """Return a text from a place on; marks of pictures before it stand in front, and none is cut in two."""
    while PICTURE_MARK in text[max(0, start - len(PICTURE_MARK) + 1) : start + len(PICTURE_MARK) - 1]:
        start += 1
    return PICTURE_MARK * text[:start].count(PICTURE_MARK) + text[start:]


def _too_much_taught(
    source: JsonlPrompts, policy: Policy, prompt: Prompt, where: str, completion_length: int
) -> UserError | None:
    if prompt.kind == "imagine" or policy.tokenizer is None:
        return None
    text = source.demonstration(prompt, np.random.default_rng(0))
    if not isinstance(text, str) or most_tokens(text) <= completion_length:
        return None
    num_tokens = len(policy.tokenizer.encode(text))
    if num_tokens <= completion_length:
        return None
    return UserError(
        f"{where}: the demonstration has {num_tokens} tokens, over completion_length {completion_length}; raise it, or "
        "set data.too_long to skip (a demonstration is not cut: it would teach a text without an end)"
    )
