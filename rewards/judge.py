"""A language model as a judge, over any server that speaks OpenAI's chat API (vLLM among them)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from unigrpo.rewards.base import Column, Failed
from unigrpo.rewards.judging.chat_client import Answer, ChatClient
from unigrpo.rewards.judging.judge_launch import LaunchedServer, launch_of
from unigrpo.rewards.judging.judge_prompt import Shown, cleaned, filled, messages_of, placeholders
from unigrpo.rewards.judging.judge_verdict import JudgeMode, Verdict, VerdictError, choice_of, mode_of
from unigrpo.rewards.text.answers import after_thinking, completion_text, cut_at_eos
from unigrpo.rewards.vision.pictures import RefusedPicture, is_picture, pictures_by_row

NUM_LOGGED = 20
"""Raw judgements that a step logs."""
_NUM_LOGGED_CHARACTERS = 500
_OWN_FIELDS = frozenset(
    ("model", "messages", "temperature", "max_tokens", "n", "stream", "logprobs", "top_logprobs", "response_format")
)
_MAX_FILLED_CHARACTERS = 8000
"""Of a column that fills a placeholder."""


@dataclass(kw_only=True, slots=True)
class _Question:
    """One item on its way to the judge."""

    body: dict[str, Any]
    shown: Shown | None
    """None for a picture."""


@dataclass(kw_only=True, slots=True)
class _Counts:
    """What a call of the reward logs."""

    raw: list[str | None] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    num_retries: int = 0


class Judge:
    """A judge's score of a text or a picture under a rubric.

    Three ways of asking (``mode``): ``schema``, a reason and a whole score as JSON whose form the server enforces and
    this checks; ``yes_no``, the probability of *yes* as the first token; ``digits``, the expected digit under the first
    token's probabilities. A reply that is no judgement is an error of its item, never a 0. A text without any visible
    character gets 0 without being asked about.

    Range:
        [0, 1]: the probability of yes, or the score between the ends of ``scale``.
    Needs:
        Any task; the columns that the rubric names in braces; a server, or the extra ``vllm`` and a GPU for ``launch``.
    Source:
        ``yes_no``: VQAScore (arXiv 2404.01291); ``digits``: the expected score of G-Eval (arXiv 2303.16634).
    Cost:
        One request a distinct completion; one generated token with ``yes_no`` and ``digits``, ``max_tokens`` at most
        with ``schema``. A 7B judge needs a GPU of its own.
    Hacked by:
        Orders to the judge, long and confident prose, flattery, repeating the rubric. Orders are fenced in (see
        ``judge_prompt``), which helps but proves nothing: keep a second judge at weight 0 and read the logged replies.
    Recipe:
        judge: {use: "unigrpo.rewards.judge:Judge", weight: 1.0, timeout_s: 40, arguments: {url: "http://127.0.0.1:8000/v1", model: "Qwen/Qwen2.5-VL-7B-Instruct", mode: yes_no, rubric: "Does the picture show {prompt}?"}}
    """  # noqa: E501 - the recipe entry is one line of YAML.

    range = (0.0, 1.0)

    def __init__(
        self,
        *,
        rubric: str,
        url: str | None = None,
        model: str | None = None,
        launch: Mapping[str, Any] | None = None,
        mode: JudgeMode = "schema",
        scale: Sequence[int] = (1, 5),
        api_key_env: str | None = None,
        concurrency: int = 32,
        deadline_s: float = 25.0,
        num_retries: int = 3,
        max_tokens: int = 512,
        max_characters: int = 8000,
        max_side: int = 1024,
        max_reply_bytes: int = 1 << 20,
        min_mass: float = 0.1,
        with_thinking: bool = False,
        with_images: bool = False,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        """Set up, and start the server where ``launch`` is given.

        Args:
            rubric: what to judge by; ``{prompt}``, ``{answer}`` and any other column in braces is filled in.
            url: of the server, up to ``/v1``.
            model: the name that the server knows it by; a launched server's only model needs none.
            launch: start a server: ``{model: ..., arguments: [...], port: 0, gpus: [0], start_timeout_s: 540}``, or
                ``{command: [...], ...}`` for one other than ``vllm serve``; see ``docs/judge.md``.
            mode: how to ask.
            scale: the worst and the best score of ``schema`` and ``digits``.
            api_key_env: the name of the environment variable that holds the key.
            concurrency: requests on their way at the same time.
            deadline_s: for a call of up to 64 completions with all its retries; must end before ``timeout_s`` does.
            num_retries: of one request, after 429, a 5xx or a lost connection.
            max_tokens: of a ``schema`` judgement.
            max_characters: of a candidate; the middle of a longer one is left out.
            max_side: pixels; larger pictures are made smaller.
            max_reply_bytes: of one reply.
            min_mass: least probability of all answers that count at the first token.
            with_thinking: judge a text's reasoning, too, and not only what follows ``</think>``.
            with_images: show the prompt's own pictures.
            request: further fields of each request, such as ``{chat_template_kwargs: {enable_thinking: false}}``.

        Raises:
            ValueError: for settings that do not fit together.
            LaunchError: if the server does not start; with the last lines of its log.
        """
        if (url is None) == (launch is None):
            raise ValueError("a judge needs either url, a server that runs, or launch, one to start; give one of them")
        if launch is None and not model:
            raise ValueError(f"model is missing; give the name under which {url} serves the judge")
        if not isinstance(rubric, str) or not rubric.strip():
            raise ValueError("rubric is empty; say what the judge is to look at")
        if "completion" in placeholders(rubric):
            raise ValueError(
                "rubric holds {completion}; leave it out: the candidate is shown, fenced in, after the rubric"
            )
        own = sorted(_OWN_FIELDS & set(request or {}))
        if own:
            raise ValueError(f"request holds {', '.join(own)}, which the judge itself sets; leave them out")
        for name, given, least in (("max_characters", max_characters, 100), ("max_side", max_side, 16)):
            if given < least:
                raise ValueError(f"{name} {given}; give at least {least}")
        if len(scale) != 2:
            raise ValueError(f"scale {list(scale)}; give two whole numbers, worst and best, such as [1, 5]")
        low, high = scale
        self._mode = mode_of(mode, scale=(low, high), max_tokens=max_tokens, min_mass=min_mass)
        self._rubric = rubric
        self._columns = tuple(name for name in placeholders(rubric) if name != "prompt")
        self.wanted_columns = (*self._columns, "images") if with_images else self._columns
        self._max_characters = max_characters
        self._max_side = max_side
        self._with_thinking = with_thinking
        self._with_images = with_images
        self._request = dict(request or {})
        self._secret = os.urandom(32)
        self._step, self._num_logged = 0, 0
        limits = {"concurrency": concurrency, "num_retries": num_retries, "max_reply_bytes": max_reply_bytes}
        connect = partial(ChatClient, api_key_env=api_key_env, deadline_s=deadline_s, **limits)
        order = None if launch is None else launch_of(launch)
        # The client checks its settings before minutes are spent on a server.
        self._client = connect(url or "http://127.0.0.1/v1")
        self._server = None if order is None else LaunchedServer(order)
        self._model = model or (self._server.model if self._server is not None else "")
        if self._server is not None:
            self._client = connect(self._server.url)

    def __call__(
        self,
        *,
        prompts: Column,
        completions: Column,
        images: Column | None = None,
        log_metric: Any = None,
        log_extra: Any = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> list[float | Failed | None]:
        """Return one value a completion; None where a column of the rubric is missing, Failed where no judgement came.

        Args:
            prompts: for ``{prompt}``.
            completions: texts or PIL images.
            images: each prompt's own pictures, shown with ``with_images``.
            log_metric: called with the mean latency, the retries, how much was cut or taken out, and the
                fraction of pictures that were refused.
            log_extra: called with the first raw judgements of each step.
            trainer_state: its step, so that each step logs as many.
            columns: for the rubric's other placeholders.
        """
        read = pictures_by_row(completions, log_metric)
        seen = [read.get(row, completion) for row, completion in enumerate(completions)]
        own_pictures = (images if self._with_images else None) or [None] * len(prompts)
        given = {name: columns.get(name) or [None] * len(prompts) for name in self._columns}
        rows: list[_Question | float | Failed | None] = [
            self._question(prompt, completion, pictures or (), {name: given[name][row] for name in given})
            for row, (prompt, completion, pictures) in enumerate(zip(prompts, seen, own_pictures, strict=True))
        ]
        questions = [row for row in rows if isinstance(row, _Question)]
        replies = iter(self._asked(questions))
        counts = _Counts()
        values: list[float | Failed | None] = []
        for row in rows:
            counts.raw.append(None)
            values.append(self._value(next(replies), counts) if isinstance(row, _Question) else row)
        self._log(questions, counts, log_metric, log_extra, getattr(trainer_state, "global_step", 0))
        return values

    def close(self) -> None:
        """Stop a launched server; it stops by itself when this process ends."""
        if self._server is not None:
            self._server.close()

    def _question(
        self, prompt: Any, completion: Any, pictures: Sequence[Image.Image], columns: Mapping[str, Any]
    ) -> _Question | float | Failed | None:
        """Return the question about a completion, or its value where there is nothing to ask."""
        if any(value is None for value in columns.values()) or (self._with_images and not pictures):
            return None
        text, shown = None, None
        if not is_picture(completion):
            text = completion_text(completion)
            if text is None:
                return None
            text = cut_at_eos(text)
            shown = cleaned(text if self._with_thinking else after_thinking(text), self._max_characters)
            if not shown.text:
                return self.range[0]
        elif isinstance(completion, RefusedPicture):
            return self.range[0]
        values = {"prompt": completion_text(prompt) or "", **{name: str(value) for name, value in columns.items()}}
        filled_in = {name: cleaned(value, _MAX_FILLED_CHARACTERS).text for name, value in values.items()}
        try:
            messages = messages_of(
                rubric=filled(self._rubric, filled_in),
                candidate=completion if shown is None else shown.text,
                pictures=pictures,
                task=self._mode.task,
                secret=self._secret,
                max_side=self._max_side,
            )
        except (ValueError, OSError) as error:
            return Failed(f"a picture cannot be shown to the judge: {error}")
        body = {"model": self._model, "messages": messages, "temperature": 0.0, **self._mode.fields(), **self._request}
        return _Question(body=body, shown=shown)

    def _asked(self, questions: Sequence[_Question]) -> list[Answer | Failed]:
        """Return one reply a question; equal ones are asked once, as the judge draws nothing."""
        keys = [repr(question.body["messages"]) for question in questions]
        bodies = {key: question.body for key, question in zip(keys, questions, strict=True)}
        answers = dict(zip(bodies, self._client.ask(list(bodies.values())), strict=True))
        return [answers[key] for key in keys]

    def _value(self, reply: Answer | Failed, counts: _Counts) -> float | Failed:
        if isinstance(reply, Failed):
            counts.raw[-1] = reply.reason[:_NUM_LOGGED_CHARACTERS]
            return reply
        counts.seconds.append(reply.seconds)
        counts.num_retries += reply.num_tries - 1
        try:
            choice = choice_of(reply.document)
            verdict: Verdict = self._mode.verdict(choice)
        except VerdictError as error:
            counts.raw[-1] = str(error)[:_NUM_LOGGED_CHARACTERS]
            return Failed(f"judge {self._model}: {error}")
        counts.raw[-1] = f"{verdict.value:.3f} {_said(choice)}"[:_NUM_LOGGED_CHARACTERS]
        counts.masses.append(verdict.mass)
        return verdict.value

    def _log(self, questions: Sequence[_Question], counts: _Counts, log_metric: Any, log_extra: Any, step: int) -> None:
        if step != self._step:
            self._step, self._num_logged = step, 0
        shown = [question.shown for question in questions if question.shown is not None]
        if log_metric is not None and questions:
            log_metric("judge/num_retries", counts.num_retries)
            if counts.seconds:
                log_metric("judge/latency_s", sum(counts.seconds) / len(counts.seconds))
            if counts.masses:
                log_metric("judge/answer_mass", sum(counts.masses) / len(counts.masses))
            if shown:
                log_metric("judge/cut_fraction", sum(text.is_cut for text in shown) / len(shown))
                log_metric("judge/injection_fraction", sum(text.num_removed > 0 for text in shown) / len(shown))
        left = NUM_LOGGED - self._num_logged
        if log_extra is not None and left > 0:
            raw: list[str | None] = []
            for text in counts.raw:
                raw.append(text if left > 0 else None)
                left -= text is not None
            self._num_logged = NUM_LOGGED - max(left, 0)
            if any(text is not None for text in raw):
                log_extra("judgement", raw)


def _said(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    return str(message.get("content", "")) if isinstance(message, dict) else ""
