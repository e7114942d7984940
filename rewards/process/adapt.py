"""Make a reward of what a recipe names: our classes, plain functions, and TRL's reward functions as they are."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.errors import UserError
from unigrpo.plugin import PluginError, relative_to, resolve

_LOGGER = logging.getLogger(__name__)

_DEFAULT_RANGE = (0.0, 1.0)


class RewardContractError(UserError):
    """A reward returned something that is not one value a completion: a mistake in its code, not bad luck."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """What TRL's ``trainer_state`` is read for."""

    global_step: int
    """The learner step that the completions belong to."""


class AdaptedReward:
    """A callable under the reward contract: it gets the columns it names, and its answer is checked.

    - Columns: those in the signature (all data columns for ``**columns``), or the class's ``wanted_columns``.
    - ``log_metric(name, value)``, ``log_extra(column, values)`` (accepted as TRL's; nothing keeps the values),
      ``trainer_state`` and ``completion_ids`` only where the signature names them. A ``solution`` that the data lacks
      is the ``answer``, TRL's own name for it.
    - A ``completions`` parameter annotated with dicts, as TRL's are, gets conversations; any other gets text.
    - A coroutine function runs in an event loop of its own.

    In a worker process the address space is limited once the reward is made: to the recipe's ``memory_limit_gb``, else
    to the attribute of that name, else, of a function, to 16 GB.
    """

    def __init__(self, target: Callable[..., Any], *, name: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Wrap ``target``, a function or an instance; ``arguments`` are extra keywords of every call."""
        self.name = name
        self.range = _checked_range(target, name)
        self.metrics: dict[str, list[float]] = {}
        """What the last call gave to ``log_metric``."""
        self.target = target
        self._arguments = dict(arguments or {})
        self._parameters = inspect.signature(target).parameters
        self._takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters.values())
        annotation = self._parameters["completions"].annotation if "completions" in self._parameters else ""
        self._is_conversational = "dict" in str(annotation).lower()

    @property
    def wanted_columns(self) -> tuple[str, ...] | None:
        """Return the columns that a call needs; None is every data column."""
        wanted = getattr(self.target, "wanted_columns", None)
        if wanted is not None:
            return tuple(wanted)
        named = [name for name, p in self._parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        if self._takes_all:
            return None
        return (*named, "answer") if "solution" in named else tuple(named)

    @property
    def wants_completion_ids(self) -> bool:
        """Return whether the signature names ``completion_ids``, and the object does not say that it needs none."""
        return "completion_ids" in self._parameters and bool(getattr(self.target, "wants_completion_ids", True))

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], step: int = 0, **columns: Any
    ) -> list[Any]:
        """Return what `score` does of columns without one that is called ``step``."""
        return self.score({**columns, "prompts": prompts, "completions": completions}, step)

    def score(self, columns: Mapping[str, Any], step: int) -> list[Any]:
        """Return the reward's own values, one a completion; they are not yet checked for being numbers.

        ``columns`` are prompts, completions and the data's; ``step`` is the learner's.

        Raises:
            RewardContractError: for a scalar, or a list of another length (one element is not spread over a batch).
        """
        self.metrics = {}
        prompts, completions = columns["prompts"], columns["completions"]
        keywords = self._keywords(prompts, completions, columns, step)
        result = self.target(**keywords)
        if inspect.isawaitable(result):
            import asyncio  # A third of the start-up time of a worker, for the few rewards that need it.

            result = asyncio.run(_wait_for(result))
        return self._checked(result, len(completions))

    def _keywords(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], step: int
    ) -> dict[str, Any]:
        available: dict[str, Any] = {**columns, "prompts": list(prompts), "completions": list(completions)}
        if self._is_conversational:
            available["completions"] = [
                [{"role": "assistant", "content": one}] if isinstance(one, str) else one for one in completions
            ]
            available["prompts"] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        if "solution" in self._parameters and "answer" in columns:
            available.setdefault("solution", columns["answer"])
        offered = {
            "log_metric": lambda name, value: self.metrics.setdefault(name, []).append(float(value)),
            "log_extra": lambda column, values: None,
            "trainer_state": TrainerState(global_step=step),
        }
        available |= {name: value for name, value in offered.items() if name in self._parameters or self._takes_all}
        if not self._takes_all:
            available = {name: value for name, value in available.items() if name in self._parameters}
        return available | self._arguments

    def _checked(self, result: Any, num_completions: int) -> list[Any]:
        shape = getattr(result, "shape", (num_completions,))
        kind = type(result).__name__
        if hasattr(result, "tolist"):
            result = result.tolist()
        if len(shape) > 1:
            given = f"a {kind} of shape {tuple(shape)}"
        elif callable(result):
            given = (
                f"a {kind}, which is itself something to call (a factory: use "
                '"unigrpo.rewards.adapters:Trl" with its `make`)'
            )
        elif isinstance(result, str | Mapping) or not isinstance(result, Sequence):
            given = f"a {kind}"
        elif len(result) != num_completions:
            given = f"a list of {len(result)}"
        else:
            return list(result)
        raise RewardContractError(
            f"reward {self.name!r} ({_described(self.target)}) returned {given} for {num_completions} completions; "
            f"return a list of {num_completions}, one number or None a completion"
        )


def load_reward(
    use: str, arguments: Mapping[str, Any] | None = None, *, name: str | None = None, folder: Path | None = None
) -> AdaptedReward:
    """Return the reward that ``use`` names: a class is made with ``arguments``, a function is called with them.

    Relative paths, in ``use`` and in what the arguments name, start at ``folder``; None is the working directory.

    Raises:
        PluginError: if there is no such object, or it cannot be called.
    """
    target = resolve(use, folder=folder)
    arguments = dict(arguments or {})
    name = name or use
    if inspect.isclass(target):
        _LOGGER.info("reward %s: making %s", name, use)
        with relative_to(folder):
            target, arguments = target(**arguments), {}
    if not callable(target):
        raise PluginError(f"use: {use!r} is a {type(target).__name__}; a reward is a function or a class with __call__")
    return AdaptedReward(target, name=name, arguments=arguments)


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def _described(target: object) -> str:
    if hasattr(target, "shown_as"):
        return str(target.shown_as)
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def _checked_range(target: object, name: str) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in getattr(target, "range", _DEFAULT_RANGE))
    except (TypeError, ValueError) as error:
        raise RewardContractError(f"reward {name!r}: range must be two numbers, lowest and highest") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RewardContractError(f"reward {name!r}: range ({low}, {high}) is empty or endless; give (lowest, highest)")
    return low, high
