"""A language model as a judge, over any server that speaks OpenAI's chat API (vLLM among them)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unigrpo.data.jsonl import as_text
from unigrpo.rewards.base import Column, Failed
from unigrpo.rewards.judging.chat_client import Answer, ChatClient
from unigrpo.rewards.judging.judge_launch import LaunchedServer, launch_of
from unigrpo.rewards.judging.judge_prompt import Shown, cleaned, filled, messages_of, placeholders
from unigrpo.rewards.judging.judge_verdict import JudgeMode, Verdict, VerdictError, choice_of, mode_of
from unigrpo.rewards.text.answers import after_thinking, completion_text, cut_at_eos
from unigrpo.rewards.vision.pictures import RefusedPicture, is_picture, pictures_by_row

_OWN_FIELDS = frozenset(
    ("model", "messages", "temperature", "max_tokens", "n", "stream", "logprobs", "top_logprobs", "response_format")
)
_MAX_FILLED_CHARACTERS = 8000
"""The most of a column that fills a placeholder."""


@dataclass(kw_only=True, slots=True)
class _Question:
    """One item on its way to the judge."""

    body: dict[str, Any]
    shown: Shown | None
    """None for a picture."""


@dataclass(kw_only=True, eq=False)
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
        ``judge_prompt``), which helps but proves nothing: keep a second judge at weight 0 and read what both like.
    Recipe:
        judge: {use: "unigrpo.rewards.judge:Judge", weight: 1.0, timeout_s: 40, arguments: {url: "http://127.0.0.1:8000/v1", model: "Qwen/Qwen2.5-VL-7B-Instruct", mode: yes_no, rubric: "Does the picture show {prompt}?"}}
    """  # noqa: E501 - the recipe entry is one line of YAML.

    range = (0.0, 1.0)

    rubric: str
    """What to judge by; ``{prompt}``, ``{answer}`` and any other column in braces is filled in."""
    url: str | None = None
    """The server's address, up to ``/v1``."""
    model: str | None = None
    """The name that the server knows it by; a launched server's only model needs none."""
    launch: Mapping[str, Any] | None = None
    """Start a server: ``{model: ..., arguments: [...], port: 0, gpus: [0], start_timeout_s: 540}``, or
    ``{command: [...], ...}`` for one other than ``vllm serve``; see ``docs/judge.md``."""
    mode: JudgeMode = "schema"
    scale: Sequence[int] = (1, 5)
    """The worst and the best score of ``schema`` and ``digits``."""
    api_key_env: str | None = None
    """The name of the environment variable that holds the key."""
    concurrency: int = 32
    """Requests on their way at the same time."""
    deadline_s: float = 25.0
    """Time of a call of up to 64 completions with all its retries; must end before ``timeout_s`` does."""
    num_retries: int = 3
    """Retries of one request, after 429, a 5xx or a lost connection."""
    max_tokens: int = 512
    """The longest ``schema`` judgement."""
    max_characters: int = 8000
    """The longest candidate; the middle of a longer one is left out."""
    max_side: int = 1024
    """Pixels; larger pictures are made smaller."""
    max_reply_bytes: int = 1 << 20
    min_mass: float = 0.1
    """Least probability of all answers that count at the first token."""
    with_thinking: bool = False
    """Judge a text's reasoning, too, and not only what follows ``</think>``."""
    with_images: bool = False
    """Show the prompt's own pictures."""
    request: Mapping[str, Any] | None = None
    """Further fields of each request, such as ``{chat_template_kwargs: {enable_thinking: false}}``."""

    def __post_init__(self) -> None:
        """Check the settings, and start the server where ``launch`` is given.

        Raises:
            ValueError: for settings that do not fit together.
            LaunchError: if the server does not start; with the last lines of its log.
        """
        if (self.url is None) == (self.launch is None):
            raise ValueError("a judge needs either url, a server that runs, or launch, one to start; give one of them")
        if self.launch is None and not self.model:
            raise ValueError(f"model is missing; give the name under which {self.url} serves the judge")
        if not isinstance(self.rubric, str) or not self.rubric.strip():
            raise ValueError("rubric is empty; say what the judge is to look at")
        names = placeholders(self.rubric)
        if "completion" in names:
            raise ValueError(
                "rubric holds {completion}; leave it out: the candidate is shown, fenced in, after the rubric"
            )
        own = sorted(_OWN_FIELDS & set(self.request or {}))
        if own:
            raise ValueError(f"request holds {', '.join(own)}, which the judge itself sets; leave them out")
        for name, given, least in (("max_characters", self.max_characters, 100), ("max_side", self.max_side, 16)):
            if given < least:
                raise ValueError(f"{name} {given}; give at least {least}")
        self._mode = mode_of(self.mode, scale=self.scale, max_tokens=self.max_tokens, min_mass=self.min_mass)
        self._columns = tuple(name for name in names if name != "prompt")
        self.wanted_columns = (*self._columns, "images") if self.with_images else self._columns
        self._secret = os.urandom(32)
        launch = None if self.launch is None else launch_of(self.launch)
        # The client checks its settings before minutes are spent on a server.
        self._client = self._client_of(self.url or "http://127.0.0.1/v1")
        self._server = None if launch is None else LaunchedServer(launch)
        self._model = self.model or (self._server.model if self._server is not None else "")
        if self._server is not None:
            self._client = self._client_of(self._server.url)

    def _client_of(self, url: str) -> ChatClient:
        return ChatClient(
            url,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            deadline_s=self.deadline_s,
            num_retries=self.num_retries,
            max_reply_bytes=self.max_reply_bytes,
        )

    def __call__(
        self,
        *,
        prompts: Column,
        completions: Column,
        images: Column | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | Failed | None]:
        """Return one value a completion; None where a column of the rubric is missing, Failed where no judgement came.

        Args:
            prompts: for ``{prompt}``.
            completions: texts or PIL images.
            images: each prompt's own pictures, shown with ``with_images``.
            log_metric: called with the mean latency, the retries, how much was cut or taken out, and the
                fraction of pictures that were refused.
            columns: for the rubric's other placeholders.
        """
        read = pictures_by_row(completions, log_metric)
        seen = [read.get(row, completion) for row, completion in enumerate(completions)]
        own_pictures = (images if self.with_images else None) or [None] * len(prompts)
        given = {name: columns.get(name) or [None] * len(prompts) for name in self._columns}
        rows: list[_Question | float | Failed | None] = [
            self._question(prompt, completion, pictures or (), {name: given[name][row] for name in given})
            for row, (prompt, completion, pictures) in enumerate(zip(prompts, seen, own_pictures, strict=True))
        ]
        questions = [row for row in rows if isinstance(row, _Question)]
        replies = self._asked(questions)
        verdicts = [self._verdict(reply) for reply in replies]
        if log_metric is not None and questions:
            _log(questions, replies, verdicts, log_metric)
        left = iter(verdicts)
        values = [next(left) if isinstance(row, _Question) else row for row in rows]
        return [value.value if isinstance(value, Verdict) else value for value in values]

    def close(self) -> None:
        """Stop a launched server; it stops by itself when this process ends."""
        if self._server is not None:
            self._server.close()

    def _question(
        self, prompt: Any, completion: Any, pictures: Sequence[Image.Image], columns: Mapping[str, Any]
    ) -> _Question | float | Failed | None:
        """Return the question about a completion, or its value where there is nothing to ask."""
        if any(value is None for value in columns.values()) or (self.with_images and not pictures):
            return None
        text, shown = None, None
        if not is_picture(completion):
            text = completion_text(completion)
            if text is None:
                return None
            text = cut_at_eos(text)
            shown = cleaned(text if self.with_thinking else after_thinking(text), self.max_characters)
            if not shown.text:
                return self.range[0]
        elif isinstance(completion, RefusedPicture):
            return self.range[0]
        values = {"prompt": completion_text(prompt) or "", **{name: as_text(value) for name, value in columns.items()}}
        filled_in = {name: cleaned(value, _MAX_FILLED_CHARACTERS).text for name, value in values.items()}
        try:
            messages = messages_of(
                rubric=filled(self.rubric, filled_in),
                candidate=completion if shown is None else shown.text,
                pictures=pictures,
                task=self._mode.task,
                secret=self._secret,
                max_side=self.max_side,
            )
        except (ValueError, OSError) as error:
            return Failed(f"a picture cannot be shown to the judge: {error}")
        body = {"model": self._model, "messages": messages, "temperature": 0.0, **self._mode.fields}
        return _Question(body=body | dict(self.request or {}), shown=shown)

    def _asked(self, questions: Sequence[_Question]) -> list[Answer | Failed]:
        """Return one reply a question; equal ones are asked once, as the judge draws nothing."""
        keys = [repr(question.body["messages"]) for question in questions]
        bodies = {key: question.body for key, question in zip(keys, questions, strict=True)}
        answers = dict(zip(bodies, self._client.ask(list(bodies.values())), strict=True))
        return [answers[key] for key in keys]

    def _verdict(self, reply: Answer | Failed) -> Verdict | Failed:
        if isinstance(reply, Failed):
            return reply
        try:
            return self._mode.verdict(choice_of(reply.document))
        except VerdictError as error:
            return Failed(f"judge {self._model}: {error}")


def _log(
    questions: Sequence[_Question],
    replies: Sequence[Answer | Failed],
    verdicts: Sequence[Verdict | Failed],
    log_metric: Any,
) -> None:
    answers = [reply for reply in replies if isinstance(reply, Answer)]
    shown = [question.shown for question in questions if question.shown is not None]
    log_metric("judge/num_retries", sum(answer.num_tries - 1 for answer in answers))
    logged = {
        "latency_s": [answer.seconds for answer in answers],
        "answer_mass": [verdict.mass for verdict in verdicts if isinstance(verdict, Verdict)],
        "cut_fraction": [text.is_cut for text in shown],
        "injection_fraction": [text.num_removed > 0 for text in shown],
    }
    for name, values in logged.items():
        if values:
            log_metric(f"judge/{name}", sum(values) / len(values))
