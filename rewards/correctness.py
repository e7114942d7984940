r"""Correctness: 1 where the final answer equals the gold answer, else 0.

Most answers are decided here by spelling and exact fractions. The rest goes to math-verify in a child process with a
deadline in CPU seconds of that child: an answer that hangs a computer algebra system is wrong, and cannot hang the run;
a busy machine makes no answer wrong. The child's start belongs to no answer. No signal, no thread and no event loop is
involved, so it works the same in a script, a thread, an asyncio loop and a Ray actor.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from unigrpo.lru import LruCache
from unigrpo.rewards.base import Failed, TimedOut
from unigrpo.rewards.maths.guards import has_relation, is_explosive, is_false_equation
from unigrpo.rewards.maths.normalize import Normal, normalize
from unigrpo.rewards.maths.spelling import are_spelt_alike
from unigrpo.rewards.process.child import Child, ChildDiedError, ChildTimeoutError
from unigrpo.rewards.process.pauses import deadline_paused
from unigrpo.rewards.text.answers import (
    ALL_SOURCES,
    MAX_ANSWER_LENGTH,
    Answer,
    AnswerSource,
    checked_sources,
    completion_text,
    extract_answer,
    gold_answer,
)

_LOGGER = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
"""For the worker's imports and first comparisons on a machine that is busy starting a run."""
WALL_FACTOR = 10.0
MIN_WALL_S = 60.0
"""A comparison may wait this long for its CPU seconds, and ``WALL_FACTOR`` deadlines; then the machine is to blame."""
Equality = Literal["mathematics", "spelling"]
_Value: TypeAlias = float | Failed | None

_NUM_CACHED = 20_000
_ANCHOR = re.compile(r"(?i)(?:answer|result|option|choice)\s*(?:is|:|=)?\s*[:=]?\s*")
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")
_CHOICE = re.compile(r"\(([A-Za-z])\)|(?<![A-Za-z])([A-Z])(?![A-Za-z'])")
_PROSE_LENGTH = 300


class AlgebraError(RuntimeError):
    """The worker that compares could not be started: no answer is to blame."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """What the worker compares; the key of the cache."""

    prediction: str
    gold: str
    is_prose: bool


class Correctness:
    r"""1 where the final answer equals the gold answer, 0 where it does not, or where comparing it would not end.

    See :mod:`unigrpo.rewards.text.answers` for where an answer is looked for. A unit that both sides name must be the
    same; ``1=2`` is no way to write 2; towers of powers, vast factorials and sums are wrong without being evaluated.

    Range: 0 to 1.
    Needs: column ``answer``: a text, a number, GSM8K's ``… #### 42`` or a solution with ``\boxed{}``.
    Source: math-verify 0.9 behind exact numbers and spelling of our own; ``spelling`` is MATH's (arXiv 2103.03874).
    Cost: 0.1 ms where spelling or numbers decide (nine of ten); 5 to 500 ms in the worker; ``deadline_s`` at most.
    Hacked by: unmarked prose that ends in many numbers, as the last one counts: leave ``text`` out of ``sources``.
    Recipe:
        correctness: {use: "unigrpo.rewards.correctness:Correctness", weight: 2.0, timeout_s: 60}

    Example:
        >>> Correctness()(prompts=["6 * 7?"], completions=[r"It is \boxed{42}."], answer=["#### 42"])
        [1.0]
    """

    range = (0.0, 1.0)
    memory_limit_gb = 4.0
    wanted_columns = ("answer",)
    is_deterministic = True

    def __init__(
        self,
        *,
        deadline_s: float = 8.0,
        sources: Collection[AnswerSource] = ALL_SOURCES,
        equality: Equality = "mathematics",
    ) -> None:
        r"""Set up; the worker starts with the first answer that needs it.

        Args:
            deadline_s: CPU seconds for one comparison; then its worker is killed and the answer is wrong. The recipe's
                ``timeout_s`` does not count them.
            sources: where an answer may stand: ``box`` (``\boxed{}``), ``tag`` (``<answer>``), ``hashes`` (``####``),
                ``text`` (unmarked, behind ``</think>`` and ``</reasoning>``).
            equality: ``spelling`` calls right only what the published MATH tables do, to stand beside them.

        Raises:
            ValueError: for an unknown source or equality.
        """
        if equality not in ("mathematics", "spelling"):
            raise ValueError(f"equality {equality!r} is unknown; give mathematics or spelling")
        self._deadline_s = deadline_s
        self._sources = checked_sources(sources)
        self._equality: Equality = equality
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._cache: LruCache[_Pair, _Value] = LruCache(_NUM_CACHED)
        self.num_timeouts = 0
        """Comparisons that used up their CPU seconds so far."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as settings: a worker belongs to one process."""
        settings = {"deadline_s": self._deadline_s, "sources": self._sources, "equality": self._equality}
        return (partial(Correctness, **settings), ())

    def __call__(self, *, completions: Sequence[Any], answer: Sequence[Any], **columns: object) -> list[Any]:
        """Return 1 (right), 0 (wrong) or None (no gold answer, or one that cannot be read) for each completion.

        A 0 for a comparison that does not end is a ``TimedOut``; where the machine, the worker's start or a gold answer
        is to blame, the value is ``Failed``. Neither is remembered.

        Raises:
            ValueError: if there are not as many answers as completions.
        """
        if len(answer) != len(completions):
            raise ValueError(
                f"Correctness got {len(completions)} completions and {len(answer)} answers; give one answer each"
            )
        rules: dict[str, Any] = {"sources": self._sources, "equality": self._equality}
        cheap = [
            judge_cheaply(completion_text(completion), gold_answer(gold), **rules)
            for completion, gold in zip(completions, answer, strict=True)
        ]
        pairs = [verdict for verdict in cheap if isinstance(verdict, _Pair)]
        if not pairs:
            return cheap
        with self._lock:
            verdicts = self._compare(pairs)
        return [verdicts[verdict] if isinstance(verdict, _Pair) else verdict for verdict in cheap]

    def start(self) -> None:
        """Start the worker ahead of the first call, and wait until it compares at full speed.

        Raises:
            AlgebraError: if it does not start.
        """
        with self._lock:
            self._running_child()

    def warm_up(self) -> None:
        """Start the worker if answers may need it; a pool calls this while it loads."""
        if self._equality == "mathematics":
            self.start()

    def close(self) -> None:
        """End the worker; a later call starts another."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._child = None

    def _compare(self, pairs: Sequence[_Pair]) -> dict[_Pair, _Value]:
        """Return the verdict of each pair, from the cache or the worker."""
        distinct = list(dict.fromkeys(pairs))
        verdicts = self._cache.get(distinct)
        waiting = [pair for pair in distinct if pair not in verdicts]
        died_on: _Pair | None = None
        while waiting:
            found: list[_Value] = []
            try:
                for value in self._answers(waiting):
                    found.append(value)
            except ChildDiedError as error:
                # A worker may have died of anything: the pair that it worked on gets one more chance.
                pair = waiting[len(found)]
                if pair == died_on:
                    found.append(self._late(pair, str(error)))
                died_on = pair
            except (AlgebraError, ChildTimeoutError) as error:
                _LOGGER.warning("%d answers could not be compared: %s", len(waiting) - len(found), error)
                found += [Failed(str(error))] * (len(waiting) - len(found))
            verdicts |= dict(zip(waiting, found, strict=False))
            waiting = waiting[len(found) :]
        settled = {pair: verdicts[pair] for pair in distinct if not isinstance(verdicts[pair], TimedOut | Failed)}
        self._cache.put(settled)
        return verdicts

    def _answers(self, pairs: Sequence[_Pair]) -> Iterator[_Value]:
        """Yield what the worker says of each pair, up to one that ends the worker by its CPU time.

        Raises:
            AlgebraError: if the worker does not start.
            ChildDiedError: if it dies of anything else than CPU time.
            ChildTimeoutError: if it does not get its CPU seconds in a much longer time.
        """
        child = self._running_child()
        child.send({"pairs": [[p.prediction, p.gold, p.is_prose] for p in pairs], "cpu_s": self._deadline_s})
        wall_s = max(MIN_WALL_S, WALL_FACTOR * self._deadline_s)
        for pair in pairs:
            has_gold = False
            try:
                with deadline_paused(2 * wall_s):
                    reply = child.receive(timeout_s=wall_s)
                    if "is_partial" in reply:
                        has_gold = True
                        reply = child.receive(timeout_s=wall_s)
            except ChildDiedError as error:
                if not error.is_out_of_cpu_time:
                    raise
                yield self._value("late" if has_gold else "gold_late", pair)
                return
            yield self._value(reply["verdict"], pair)

    def _running_child(self) -> Child:
        if self._child is None or not self._child.is_alive:
            self._child = Child("unigrpo.rewards.maths.math_worker")
            try:
                with deadline_paused(START_TIMEOUT_S):
                    self._child.send({"hello": True})
                    self._child.receive(timeout_s=START_TIMEOUT_S)
            except (ChildDiedError, ChildTimeoutError) as error:
                raise AlgebraError(
                    f"the process that compares answers did not start: {error}. Its log is above; math-verify must be "
                    "installed, and 2 GB of memory free"
                ) from error
        return self._child

    def _value(self, verdict: str, pair: _Pair) -> _Value:
        if verdict == "late":
            return self._late(pair, f"it took more than its {self._deadline_s:g} CPU seconds")
        if verdict == "gold_late":
            reason = f"the gold answer {pair.gold[:80]!r} could not be read in {self._deadline_s:g} CPU seconds"
            _LOGGER.warning("%s; raise deadline_s, or mend it", reason)
            return Failed(reason)
        if verdict == "unreadable":
            _LOGGER.warning(
                "the gold answer %r cannot be read as mathematics; only its exact spelling counts", pair.gold
            )
            return None
        return float(verdict == "right")

    def _late(self, pair: _Pair, reason: str) -> TimedOut:
        self.num_timeouts += 1
        _LOGGER.warning("comparing %r with %r: %s", pair.prediction[:80], pair.gold[:80], reason)
        return TimedOut(0.0, f"comparing {pair.prediction[:80]!r}: {reason}")


def judge_cheaply(
    text: str | None,
    gold: str | None,
    *,
    sources: Collection[AnswerSource] = ALL_SOURCES,
    equality: Equality = "mathematics",
) -> float | _Pair | None:
    """Return a verdict where spelling, exact numbers or a guard decide; else the pair for the worker."""
    if text is None or gold is None or not gold.strip() or len(gold) > MAX_ANSWER_LENGTH:
        return None
    answer = extract_answer(text, sources)
    if answer is None:
        return 0.0
    if equality == "spelling":
        return float(are_spelt_alike(answer.text, gold))
    wanted = normalize(gold)
    if answer.source == "text":
        return _judge_prose(answer, wanted)
    return _judge(answer.text, wanted)


def _judge(given_text: str, wanted: Normal) -> float | _Pair:
    given = normalize(given_text)
    decided = _same_spelling_or_number(given, wanted)
    if decided is not None:
        return decided
    is_wrong = (
        (is_false_equation(given.text) and "=" not in wanted.text)
        or is_explosive(given.text)
        or is_explosive(wanted.text)
        or (has_relation(wanted.text) != has_relation(given.text) and not _is_set_like(wanted.text, given.text))
    )
    return 0.0 if is_wrong else _Pair(given.text, wanted.text, False)


def _same_spelling_or_number(given: Normal, wanted: Normal) -> float | None:
    """Return 1 or 0 where both are alike or both are numbers or words; None where mathematics has to decide."""
    if given.unit is not None and wanted.unit is not None and given.unit != wanted.unit:
        return 0.0
    if given.text.replace(" ", "") == wanted.text.replace(" ", ""):
        return 1.0
    if given.value is not None and wanted.value is not None:
        return float(given.value == wanted.value or _is_bare_percent(given, wanted))
    if wanted.word is not None:
        return float((given.word or given.text.strip("()[]*\"'.: ").lower()) == wanted.word)
    if re.fullmatch(r"[A-Z]", wanted.text) and given.word is not None and len(given.word) == 1:
        return float(given.word == wanted.text.lower())
    return None


def _is_bare_percent(given: Normal, wanted: Normal) -> bool:
    """Return whether one side leaves out the percent sign (``35`` for ``35%``, or the reverse)."""
    if given.is_percent == wanted.is_percent or given.value is None or wanted.value is None:
        return False
    return given.value == wanted.value * 100 if wanted.is_percent else given.value * 100 == wanted.value


def _is_set_like(wanted: str, given: str) -> bool:
    """Return whether an inequality stands against a set or an interval, which may mean the same."""
    return any(text.lstrip("- ").startswith(("(", "[", "\\{", "\\emptyset", "\\mathbb")) for text in (wanted, given))


def _judge_prose(answer: Answer, wanted: Normal) -> float | _Pair:
    """Judge unmarked text: all of it, then what follows the last "answer is", then the worker's own search."""
    pieces = [answer.text] if len(answer.text) <= _PROSE_LENGTH else []
    anchors = list(_ANCHOR.finditer(answer.text))
    if anchors:
        rest = answer.text[anchors[-1].end() :].strip()
        end = _SENTENCE_END.search(rest)
        pieces.append(rest[: end.start()] if end else rest)
    for piece in pieces:
        if 0 < len(piece) <= MAX_ANSWER_LENGTH and _same_spelling_or_number(normalize(piece), wanted) == 1.0:
            return 1.0
    if re.fullmatch(r"[A-Z]", wanted.text):
        choices = [match[1] or match[2] for match in _CHOICE.finditer(answer.text)]
        return float(bool(choices) and choices[-1].upper() == wanted.text)
    tail = answer.text[-_PROSE_LENGTH:]
    if wanted.word is not None or is_explosive(tail) or is_explosive(wanted.text):
        return 0.0
    return _Pair(answer.text[-2000:], wanted.text, True)
