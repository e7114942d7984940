"""What a judge is asked for and what its reply is worth: a JSON score, or a probability of its first token."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

JudgeMode = Literal["schema", "yes_no", "digits"]

_NUM_LOGPROBS = 20
"""The most that vLLM and OpenAI give unless told otherwise."""
_FIRST_TOKEN: Mapping[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": _NUM_LOGPROBS}
"""What makes a server tell its first token's probabilities."""
_MAX_MASS = 1.01
_LEAST_LOGPROB = -1e4
"""Its exponential is 0; a JSON number may be too long for a float."""
_NUM_SHOWN_CHARACTERS = 200
_TRIMMED = " \t\r\n\"'`*.,:;()[]\u2581\u0120"
"""Around a surface form of an answer; the last two stand for a space in some vocabularies."""


class VerdictError(ValueError):
    """A reply that is no judgement: what it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A judgement."""

    value: float
    """The score, in [0, 1]."""
    mass: float = 1.0
    """Probability of all answers that count, at the first token."""


class Mode(Protocol):
    """One way of asking."""

    task: str
    """What the judge is told to answer."""
    fields: Mapping[str, Any]
    """What the request needs beside its messages."""

    def verdict(self, choice: Mapping[str, Any]) -> Verdict:
        """Return what a choice is worth.

        Raises:
            VerdictError: if it is not a judgement.
        """


class SchemaMode:
    """A reason and a whole score as JSON. A server that enforces no form is found out: any other form is refused."""

    def __init__(self, scale: tuple[int, int], max_tokens: int) -> None:
        """Ask for a score from ``scale[0]``, the worst, to ``scale[1]``."""
        self._low, self._high = scale
        self._max_tokens = max_tokens
        self.task = (
            'Answer with a JSON object: "reason", one or two sentences, then "score", '
            f"a whole number from {self._low} (worst) to {self._high} (best)."
        )
        score = {"type": "integer", "minimum": self._low, "maximum": self._high}
        schema = {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "score": score},
            "required": ["reason", "score"],
            "additionalProperties": False,
        }
        json_schema = {"name": "judgement", "strict": True, "schema": schema}
        form = {"type": "json_schema", "json_schema": json_schema}
        self.fields: Mapping[str, Any] = {"max_tokens": max_tokens, "response_format": form}

    def verdict(self, choice: Mapping[str, Any]) -> Verdict:
        """Return the score, mapped to [0, 1]."""
        text = text_of(choice)
        if choice.get("finish_reason") == "length":
            raise VerdictError(f"the judge was cut off; raise max_tokens (now {self._max_tokens}): {_shown(text)}")
        try:
            document = json.loads(text, object_pairs_hook=_entries)
        except (ValueError, RecursionError) as error:
            raise VerdictError(f"the judgement is not JSON, or has a key twice: {_shown(text)}") from error
        if not isinstance(document, dict) or document.keys() != {"reason", "score"}:
            raise VerdictError(f"wanted an object of reason and score alone, not {_shown(text)}")
        if not isinstance(document["reason"], str):
            raise VerdictError(f"the reason is no text in {_shown(text)}")
        score = document["score"]
        if isinstance(score, bool) or not isinstance(score, int) or not self._low <= score <= self._high:
            raise VerdictError(f"no whole score from {self._low} to {self._high} in {_shown(text)}")
        return Verdict(value=(score - self._low) / (self._high - self._low))


class YesNoMode:
    """The probability that the first token is a spelling of *yes* (VQAScore, arXiv 2404.01291, equation 1)."""

    task = "Answer with one word, Yes or No, and nothing else."
    fields = _FIRST_TOKEN

    def __init__(self, min_mass: float) -> None:
        """Refuse replies whose yes and no together have less than ``min_mass``."""
        self._min_mass = min_mass

    def verdict(self, choice: Mapping[str, Any]) -> Verdict:
        """Return the probability of yes, summed over its spellings."""
        masses = _masses(choice, ("yes", "no"))
        mass = _checked_mass(masses, self._min_mass, "yes or no")
        return Verdict(value=min(1.0, masses["yes"]), mass=mass)


class DigitsMode:
    """The expected digit under the first token's probabilities: smoother than the most likely digit."""

    fields = _FIRST_TOKEN

    def __init__(self, scale: tuple[int, int], min_mass: float) -> None:
        """Ask for a digit from ``scale[0]``, the worst, to ``scale[1]``."""
        self._low, self._high = scale
        self._min_mass = min_mass
        self.task = f"Answer with one digit from {self._low} (worst) to {self._high} (best), and nothing else."

    def verdict(self, choice: Mapping[str, Any]) -> Verdict:
        """Return the expected digit among those of the scale, mapped to [0, 1]."""
        masses = _masses(choice, tuple(str(digit) for digit in range(self._low, self._high + 1)))
        mass = _checked_mass(masses, self._min_mass, f"a digit from {self._low} to {self._high}")
        expected = sum(int(digit) * probability for digit, probability in masses.items()) / mass
        return Verdict(value=min(1.0, max(0.0, (expected - self._low) / (self._high - self._low))), mass=mass)


def mode_of(mode: JudgeMode, *, scale: Sequence[int], max_tokens: int, min_mass: float) -> Mode:
    """Return a mode by name.

    Raises:
        ValueError: for an unknown mode, or a scale or limit that it cannot have.
    """
    if len(scale) != 2 or not all(isinstance(bound, int) for bound in scale) or not scale[0] < scale[1]:
        raise ValueError(f"scale {list(scale)}; give two whole numbers, worst and best, such as [1, 5]")
    if not 0 < min_mass <= 1:
        raise ValueError(f"min_mass {min_mass}; give a probability above 0, at most 1")
    if max_tokens < 1:
        raise ValueError(f"max_tokens {max_tokens}; give at least 1")
    low, high = scale
    if mode == "schema":
        return SchemaMode((low, high), max_tokens)
    if mode == "yes_no":
        return YesNoMode(min_mass)
    if mode == "digits":
        if not (low >= 0 and high <= 9):
            raise ValueError(f"scale {list(scale)}; digits are single tokens, 0 to 9: for more, use mode: schema")
        return DigitsMode((low, high), min_mass)
    raise ValueError(f"mode {mode!r}; give one of schema, yes_no, digits")


def choice_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the only choice of a reply.

    Raises:
        VerdictError: if it has none or several.
    """
    choices = document.get("choices")
    if not isinstance(choices, list):
        raise VerdictError(f"the reply has no list of choices but {_shown(str(sorted(document)))}")
    if len(choices) != 1 or not isinstance(choices[0], dict):
        raise VerdictError(f"the reply has {len(choices)} choices; one was asked for")
    return choices[0]


def text_of(choice: Mapping[str, Any]) -> str:
    """Return what the judge wrote.

    Raises:
        VerdictError: if there is no text.
    """
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise VerdictError("the reply's choice has no text in message.content")
    return content


def _entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; one with a key twice has two meanings, of which Python would take the last."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice")
    return entries


def _masses(choice: Mapping[str, Any], answers: tuple[str, ...]) -> dict[str, float]:
    """Return the probability of each answer at the first token, summed over spellings."""
    masses = dict.fromkeys(answers, 0.0)
    for entry in _top_of(choice):
        token = entry.get("token") if isinstance(entry, dict) else None
        logprob = entry.get("logprob") if isinstance(entry, dict) else None
        is_number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
        if not isinstance(token, str) or not is_number or logprob is None or not -math.inf <= logprob <= 1e-3:
            raise VerdictError(f"a log-probability that is none: {_shown(str(entry))}")
        answer = token.strip(_TRIMMED).lower()
        if answer in masses:
            masses[answer] += math.exp(max(logprob, _LEAST_LOGPROB))
    if sum(masses.values()) > _MAX_MASS:
        raise VerdictError(f"the answers' probabilities add up to {sum(masses.values()):.3f}")
    return masses


def _top_of(choice: Mapping[str, Any]) -> list[Any]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(top, list) or not top:
        raise VerdictError(
            f"the reply has no log-probabilities; the server must give top_logprobs={_NUM_LOGPROBS} "
            "(vLLM: --max-logprobs), or use mode: schema"
        )
    return top


def _checked_mass(masses: Mapping[str, float], min_mass: float, wanted: str) -> float:
    mass = sum(masses.values())
    if mass < min_mass:
        raise VerdictError(
            f"{wanted} has a probability of {mass:.3g} as first token, less than min_mass {min_mass:g}; does the judge "
            "think aloud first? Turn that off (request: {chat_template_kwargs: {enable_thinking: false}})"
        )
    return mass


def _shown(text: str) -> str:
    return repr(text[:_NUM_SHOWN_CHARACTERS])
