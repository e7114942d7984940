"""Reward functions that were written for other trainers, as they are: TRL, verl, OpenRLHF and flow_grpo.

An entry names the adapter in ``use`` and the function in ``arguments.function``. A function that *makes* the reward
(TRL's ``get_…_reward``, flow_grpo's ``fn(device)``) also gets ``make``, the keywords of that one call; ``make: {}``
where it takes none. Nothing is guessed from names: without ``make`` the function itself is the reward.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from unigrpo.plugin import CodeReference, PluginError, resolve
from unigrpo.rewards.base import Column
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.rewards.process.traits import source_hash

UNIT_RANGE = (0.0, 1.0)
_OFFERED = frozenset({"log_metric", "log_extra", "trainer_state", "completion_ids", "images", "task"})
Log: TypeAlias = Callable[..., None]
_VERL_COLUMNS = frozenset({"data_source", "ground_truth", "reward_model", "extra_info", "answer"})


class _Adapter:
    """A function of another trainer, found or made, with the range that its user states."""

    def __init__(
        self,
        *,
        function: CodeReference,
        make: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        range: Sequence[float] = UNIT_RANGE,
    ) -> None:
        """Find the function, and call it once where it makes the reward.

        Args:
            function: ``"module:name"`` or ``"path/to/file.py:name"``.
            make: keywords of a factory; None where ``function`` is the reward itself.
            arguments: extra keywords of every call.
            range: lowest and highest value.

        Raises:
            PluginError: if there is no such function, or what it makes cannot be called.
        """
        found = resolve(function)
        if not callable(found):
            raise PluginError(f"function: {function!r} is a {type(found).__name__}; wanted something to call")
        if make is not None:
            found = found(**make)
            if not callable(found):
                raise PluginError(
                    f"function: {function!r} called with {dict(make)} gave a {type(found).__name__}, which cannot be "
                    "called; leave out make if it is the reward itself"
                )
        self.range = tuple(range)
        self.shown_as = function
        """What errors call it."""
        self.fingerprint = source_hash(found)
        self.warm_up = getattr(found, "warm_up", None)
        self._function: Callable[..., Any] = found
        self._arguments = dict(arguments or {})
        self._adopt(found)

    def _adopt(self, function: Callable[..., Any]) -> None:
        """Take over more of the function than its calls."""

    def _error(self, given: str, wanted: str) -> RewardContractError:
        return RewardContractError(f"{self.shown_as} returned {given}; wanted {wanted}")

    def _values(self, result: Any, count: int) -> list[Any]:
        """Return a batch's result as a list of ``count`` values."""
        shape = getattr(result, "shape", None)
        values = result.tolist() if hasattr(result, "tolist") else result
        if shape is not None and len(shape) != 1:
            raise self._error(f"a {type(result).__name__} of shape {tuple(shape)}", f"shape ({count},)")
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
            raise self._error(f"a {type(result).__name__}", f"one value for each of {count} completions")
        if len(values) != count:
            raise self._error(f"{len(values)} values", f"{count}, one a completion; none is spread over a batch")
        return list(values)


class Trl(_Adapter):
    """A reward function of TRL's call that a factory makes, or whose range is not [0, 1].

    A plain function of that call needs no adapter: ``use: "trl.rewards:accuracy_reward"``.

    Range: as stated in the entry; [0, 1] if it is not.
    Needs: what the function names: columns, ``completion_ids``.
    Source: TRL, ``GRPOTrainer``'s ``reward_funcs``.
    Cost: the function's.
    Hacked by: whatever fools the function.
    Recipe:
        no_repetition:
          use: "unigrpo.rewards.adapters:Trl"
          arguments: {function: "trl.rewards:get_repetition_penalty_reward", make: {ngram_size: 3}, range: [-1, 0]}
    """

    def _adopt(self, function: Callable[..., Any]) -> None:
        self.__signature__ = inspect.signature(function)
        self.wanted_columns = getattr(function, "wanted_columns", None)

    def __call__(self, **keywords: Any) -> Any:
        """Return what the function returns; its length is checked by whoever calls a reward."""
        return self._function(**{**keywords, **self._arguments})


class Verl(_Adapter):
    """A verl ``compute_score(data_source, solution_str, ground_truth, extra_info)``, called once a completion.

    It gives a number, or a dict with its number under ``score`` whose other entries are left out; None does not
    apply. ``ground_truth`` is that column, else ``reward_model.ground_truth`` as verl's data has it, else the answer.
    ``extra_info`` is that column, else whatever other columns the data has. Coroutines of a batch run together.

    Range: as stated in the entry; [0, 1] if it is not.
    Needs: text; a ground truth; ``data_source`` as column or setting where the function looks at it.
    Source: verl, ``custom_reward_function`` (arXiv 2409.19256).
    Cost: the function's, one call a completion.
    Hacked by: whatever fools the function.
    Recipe:
        verl_score:
          use: "unigrpo.rewards.adapters:Verl"
          arguments: {function: "their_package.rewards:compute_score", data_source: "openai/gsm8k"}
    """

    def __init__(
        self,
        *,
        function: CodeReference,
        data_source: str = "",
        make: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        range: Sequence[float] = UNIT_RANGE,
    ) -> None:
        """Find the function; ``arguments`` are verl's ``reward_kwargs``.

        Args:
            function: see :class:`_Adapter`.
            data_source: where the data has no such column.
            make: see :class:`_Adapter`.
            arguments: see :class:`_Adapter`.
            range: see :class:`_Adapter`.
        """
        super().__init__(function=function, make=make, arguments=arguments, range=range)
        self._data_source = data_source

    def __call__(
        self, *, prompts: Column, completions: Column, **columns: Any
    ) -> list[Any] | Coroutine[Any, Any, list[Any]]:
        """Return one number a completion, or a coroutine of them; None for a picture."""
        data = {name: values for name, values in columns.items() if name not in _OFFERED}
        items = [{name: values[row] for name, values in data.items()} for row in range(len(completions))]
        calls = [
            self._function(**self._keywords(text, item)) if isinstance(text, str) else None
            for text, item in zip(completions, items, strict=True)
        ]
        if any(inspect.isawaitable(call) for call in calls):
            return self._gathered(calls)
        return [self._number(call) for call in calls]

    def _keywords(self, text: str, item: Mapping[str, Any]) -> dict[str, Any]:
        rule = item.get("reward_model")
        truths = (item.get("ground_truth"), rule.get("ground_truth") if isinstance(rule, Mapping) else None)
        source = item.get("data_source")
        extra = item.get("extra_info")
        others = {name: value for name, value in item.items() if name not in _VERL_COLUMNS}
        return {
            "data_source": self._data_source if source is None else source,
            "solution_str": text,
            "ground_truth": next((truth for truth in truths if truth is not None), item.get("answer")),
            "extra_info": others if extra is None else extra,
            **self._arguments,
        }

    async def _gathered(self, calls: Sequence[Any]) -> list[Any]:
        async def settled(value: Any) -> Any:
            return await value if inspect.isawaitable(value) else value

        return [self._number(result) for result in await asyncio.gather(*map(settled, calls))]

    def _number(self, result: Any) -> Any:
        if isinstance(result, Mapping):
            if "score" not in result:
                raise self._error(f"a dict of {sorted(map(str, result))}", "a number, or a dict with 'score'")
            result = result["score"]
        if isinstance(result, str | bytes | Sequence) or getattr(result, "shape", ()) != ():
            raise self._error(f"a {type(result).__name__} for one completion", "a number, or a dict with 'score'")
        return result


class OpenRlhf(_Adapter):
    """An OpenRLHF ``reward_func(queries, prompts, labels)``; a query is the prompt and its completion in one text.

    It gives a tensor or list of one number a completion, or a dict that has it under ``rewards``; single numbers
    under ``scores`` and ``extra_logs`` are logged.

    Range: as stated in the entry; [0, 1] if it is not.
    Needs: text; the label is the answer.
    Source: OpenRLHF, ``--remote_rm_url reward_func.py`` (arXiv 2405.11143).
    Cost: the function's.
    Hacked by: whatever fools the function; one that searches the whole query finds answers in the prompt.
    Recipe:
        openrlhf_score:
          use: "unigrpo.rewards.adapters:OpenRlhf"
          arguments: {function: "path/to/reward_func.py:reward_func"}
    """

    def __call__(self, *, prompts: Column, completions: Column, answer: Column, log_metric: Log) -> list[Any]:
        """Return one number a completion; None for a picture."""
        rows = [row for row, completion in enumerate(completions) if isinstance(completion, str)]
        if not rows:
            return [None] * len(completions)
        result = self._function(
            queries=[f"{prompts[row]}{completions[row]}" for row in rows],
            prompts=[prompts[row] for row in rows],
            labels=[answer[row] for row in rows],
            **self._arguments,
        )
        if isinstance(result, Mapping):
            if "rewards" not in result:
                raise self._error(f"a dict of {sorted(map(str, result))}", "a dict with 'rewards'")
            _log({"scores": result.get("scores"), **(result.get("extra_logs") or {})}, log_metric)
            result = result["rewards"]
        return _spread(self._values(result, len(rows)), rows, [None] * len(completions))


class FlowGrpo(_Adapter):
    """A flow_grpo ``fn(images, prompts, metadata) -> (scores, meta)``; pictures of one size go in one call.

    ``metadata`` holds one dict a picture: the data's ``metadata`` column, else its other columns. Of several results
    the first is the scores; from a dict of scores, ``avg`` is taken, and single numbers among
    the rest are logged.

    Range: as stated in the entry; [0, 1] if it is not.
    Needs: generated pictures.
    Source: flow_grpo, ``flow_grpo/rewards.py`` (arXiv 2505.05470).
    Cost: the function's.
    Hacked by: whatever fools the function.
    Recipe:
        flow_jpeg:
          use: "unigrpo.rewards.adapters:FlowGrpo"
          arguments: {function: "flow_grpo.rewards:jpeg_compressibility", make: {}, range: [-1, 0]}
    """

    def __init__(
        self,
        *,
        function: CodeReference,
        images: Literal["array", "tensor"] = "array",
        make: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        range: Sequence[float] = UNIT_RANGE,
    ) -> None:
        """Find or make the function.

        Args:
            function: see :class:`_Adapter`.
            images: array is [N, H, W, 3] uint8; tensor is [N, 3, H, W] float in [0, 1]. Theirs take either.
            make: ``{device: cuda}`` for theirs that load weights, ``{}`` for those without.
            arguments: see :class:`_Adapter`.
            range: see :class:`_Adapter`.

        Raises:
            ValueError: for other ``images``.
        """
        if images not in ("array", "tensor"):
            raise ValueError(f"images {images!r} is not known; it is 'array' or 'tensor'")
        super().__init__(function=function, make=make, arguments=arguments, range=range)
        self._is_tensor = images == "tensor"

    def __call__(self, *, prompts: Column, completions: Column, log_metric: Log, **columns: Any) -> list[Any]:
        """Return one number a picture, the least for one that cannot be read; None for text."""
        from unigrpo.rewards.vision.pictures import RefusedPicture, pictures_by_row

        read = pictures_by_row(completions, log_metric)
        values: list[Any] = [None] * len(completions)
        by_size: dict[tuple[int, int], list[int]] = {}
        for row, one in read.items():
            if isinstance(one, RefusedPicture):
                values[row] = self.range[0]
            else:
                by_size.setdefault(one.size, []).append(row)
        for rows in by_size.values():
            metadata = [_metadata(columns, row) for row in rows]
            scores, logs = self._call([read[row] for row in rows], [prompts[row] for row in rows], metadata)
            _spread(scores, rows, values)
            _log(logs, log_metric)
        return values

    def _call(
        self, pictures: Sequence[Any], prompts: list[Any], metadata: list[Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        import numpy as np

        images: Any = np.stack([np.asarray(picture) for picture in pictures])
        if self._is_tensor:
            import torch

            images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        result = self._function(images, prompts, metadata, **self._arguments)
        scores, logs = result, dict[str, Any]()
        if isinstance(result, tuple):
            if not result:
                raise self._error("an empty tuple", "(scores, meta)")
            scores, logs = result[0], dict(next((item for item in result[1:] if isinstance(item, Mapping)), {}))
        if isinstance(scores, Mapping):
            if "avg" not in scores:
                raise self._error(f"a dict of {sorted(map(str, scores))}", "scores, or a dict of them with 'avg'")
            logs |= {name: value for name, value in scores.items() if name != "avg"}
            scores = scores["avg"]
        return self._values(scores, len(pictures)), logs


def _metadata(columns: Mapping[str, Sequence[Any]], row: int) -> Any:
    if "metadata" in columns and columns["metadata"][row] is not None:
        return columns["metadata"][row]
    return {name: values[row] for name, values in columns.items() if name not in _OFFERED}


def _spread(values: Sequence[Any], rows: Sequence[int], places: list[Any]) -> list[Any]:
    """Put the values in the places of their rows, and return these."""
    for row, value in zip(rows, values, strict=True):
        places[row] = value
    return places


def _log(logs: Mapping[str, Any], log_metric: Log) -> None:
    """Log the single numbers; anything else is left out."""
    for name, value in logs.items():
        number = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(number, int | float):
            log_metric(name, number)
