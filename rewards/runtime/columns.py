"""What a reward is called with, as columns: prompts, completions and the data's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unigrpo.types import Prompt, Rollout

SUPPLIED = ("prompts", "completions", "completion_ids", "group_ids", "log_metric", "log_extra", "trainer_state")
"""What a reward is called with beside the data's columns and its arguments."""
_NOT_OF_THE_DATA = frozenset((*SUPPLIED, "solution"))
"""What a signature may name beside columns; a ``solution`` is the answer under TRL's name."""


def columns_of(
    rollouts: Sequence[Rollout],
    *,
    wanted: frozenset[str] | None = None,
    with_completion_ids: bool = False,
    group_ids: Sequence[int] | None = None,
) -> dict[str, list[Any]]:
    """Return what a reward is called with: prompts, completions and the wanted data columns by name.

    A completion is a picture (PIL) where the rollout made one, else its text. A column that some prompts lack is None
    there; ``answer``, ``images`` and ``task``, the name, are the prompt's own; so is ``kind``, where the data has none.

    Args:
        rollouts: of one call.
        wanted: data columns; None is all.
        with_completion_ids: whether the reward asks for token ids.
        group_ids: of each rollout, for a reward that needs whole groups; None leaves the column out.
    """
    from PIL import Image

    columns = data_columns([rollout.prompt for rollout in rollouts], wanted)
    if group_ids is not None:
        columns["group_ids"] = list(group_ids)
    if with_completion_ids:
        columns["completion_ids"] = [rollout.token_ids[rollout.is_completion].tolist() for rollout in rollouts]
    columns["prompts"] = [rollout.prompt.text for rollout in rollouts]
    columns["completions"] = [
        (rollout.text or "") if rollout.image is None else Image.fromarray(rollout.image) for rollout in rollouts
    ]
    return columns


def data_columns(prompts: Sequence[Prompt], wanted: frozenset[str] | None) -> dict[str, list[Any]]:
    """Return the wanted columns that come from the prompts."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns: dict[str, list[Any]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in names if wanted is None or name in wanted
    }
    if wanted is not None and "kind" in wanted - names.keys():
        columns["kind"] = [prompt.kind for prompt in prompts]
    own = {"answer": lambda p: p.answer, "images": lambda p: list(p.images), "task": lambda p: p.task}
    columns |= {name: [read(p) for p in prompts] for name, read in own.items() if wanted is None or name in wanted}
    return columns


def empty_columns(prompts: Sequence[Prompt], wanted: frozenset[str] | None) -> list[str]:
    """Return the columns that a reward names and that are empty in every prompt; none where it takes all there are."""
    names = sorted((wanted or frozenset()) - _NOT_OF_THE_DATA)
    columns = data_columns(prompts, frozenset(names))
    return [
        name
        for name in names
        if all(value is None or (isinstance(value, list) and not value) for value in columns.get(name, ()))
    ]
