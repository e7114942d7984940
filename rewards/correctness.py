r"""Correctness: 1 where the final answer equals the gold answer, else 0.

Most answers are decided here by spelling and exact fractions. The rest goes to math-verify in a child process with a
deadline in CPU seconds of that child: an answer that hangs a computer algebra system is wrong, and cannot hang the run;
a busy machine makes no answer wrong. The child's start belongs to no answer. No signal, no thread and no event loop is
involved, so it works the same in a script, a thread, an asyncio loop and a Ray actor.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from unigrpo.lru import LruCache
from unigrpo.rewards.base import Failed, TimedOut
from unigrpo.rewards.maths.verdict import Equality, Pair, judge_cheaply
from unigrpo.rewards.process.child import Child, ChildDiedError, ChildTimeoutError
from unigrpo.rewards.process.pauses import deadline_paused
from unigrpo.rewards.text.answers import ALL_SOURCES, AnswerSource, checked_sources, completion_text, gold_answers

_LOGGER = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
"""For the worker's imports and first comparisons on a machine that is busy starting a run."""
WALL_FACTOR = 10.0
MIN_WALL_S = 60.0
"""A comparison may wait this long for its CPU seconds, and ``WALL_FACTOR`` deadlines; then the machine is to blame."""
_Value: TypeAlias = float | Failed | None

_NUM_CACHED = 20_000


class AlgebraError(RuntimeError):
    """The worker that compares could not be started: no answer is to blame."""


class Correctness:
    r"""1 where the final answer equals the gold answer, 0 where it does not, or where comparing it would not end.

    What is read as the answer, and what is equal to it:

    - A box comes before ``<answer>``, this before ``####``, and prose last. Several boxes: the last decides;
      ``\boxed{3} or \boxed{5}`` is one answer that leaves open which. Two boxes answer a question of two parts. An
      earlier box, ``<answer>``, ``####`` or number never stands in for the last.
    - The words next to a box, ``<answer>`` or the line of ``####`` refuse it where they doubt (``Maybe \boxed{5}``,
      ``\boxed{5}?``), deny or bound it (``It is at least \boxed{5}``; ``we need at least \boxed{5} socks`` is 5), or
      put another in its place (``Actually, it's 6``; ``So the answer is 6``, where both are whole numbers).
    - Cut off: a last box, ``<answer>``, ``<think>``, brace, ``$`` or ``\frac{1}`` that is never closed earns nothing.
    - Prose claims what the last sentence with "the answer is", else the last with a number, says. Hedged (``3 or 5``,
      ``maybe 5``, ``5?``), denied (``not 5``), taken back (``Wait, …``), a range or a bound (``between 3 and 5``,
      ``at least 5``, ``5 or more``) earns nothing, in a box, too. ``5, not 4``, ``not 4 but 5`` and ``It cannot be 4,
      so the answer is 5`` are 5.
    - Several parts (``3 and 5``, ``x=3 or x=5``, ``\pm 2``): all of them and no others, in any order unless they are
      called something (``x=1, y=2``; ``9 chickens and 10 rabbits``). A list in the column ``answer`` is something
      else: any of its answers is right.
    - Tolerance: whole numbers, ratios, roots and other exact forms are exactly equal. A decimal of seven significant
      digits or more stands for what it rounds or cuts (``1.41421356``, ``0.0833333333333333``), a relative error below
      a millionth at any size, in lists, intervals and matrices alike; a shorter one means itself (``0.333`` is not
      1/3, ``0.333...`` is). The noise of a float is no difference. Lists with ``\ldots`` are equal as they are spelled.
    - Units, currencies: one that both sides name must be the same (``12 m`` is not ``12 cm``); one side may leave it
      out, also the percent sign. Nothing is converted. Counted nouns (``5 apples``) are not compared.
    - Words compare as words, without case: ``\text{ab}`` is not ``\text{ba}``, though ``ab`` is ``ba``.
    - Variables are real. What the question says of them (``n > 0``) is not known here: ``n`` is not ``\sqrt{n^2}``,
      ``|n|`` is.
    - ``1=2`` is no way to write 2; towers of powers, vast factorials and sums are wrong without being evaluated.

    See :mod:`unigrpo.rewards.text.answers` for where an answer is looked for.

    Range: 0 to 1.
    Needs: column ``answer``: a text, a number, GSM8K's ``… #### 42``, a solution with ``\boxed{}``, or a list of them.
    Source: math-verify 0.9 behind exact numbers and spelling of our own; ``spelling`` is MATH's (arXiv 2103.03874).
    Cost: 0.1 ms where spelling or numbers decide (nine of ten); 5 to 500 ms in the worker; ``deadline_s`` at most.
    Hacked by: unmarked prose, of which sense is made by rules: leave ``text`` out of ``sources``.
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
        self._cache: LruCache[Pair, _Value] = LruCache(_NUM_CACHED)
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
        texts = map(completion_text, completions)
        cheap = [_judged(text, golds, rules) for text, golds in zip(texts, answer, strict=True)]
        pairs = [verdict for row in cheap if 1.0 not in row for verdict in row if isinstance(verdict, Pair)]
        verdicts: dict[Pair, _Value] = {}
        if pairs:
            with self._lock:
                verdicts = self._compare(pairs)
        return [_best([verdicts.get(each, 0.0) if isinstance(each, Pair) else each for each in row]) for row in cheap]

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

    def _compare(self, pairs: Sequence[Pair]) -> dict[Pair, _Value]:
        """Return the verdict of each pair, from the cache or the worker."""
        distinct = list(dict.fromkeys(pairs))
        verdicts = self._cache.get(distinct)
        waiting = [pair for pair in distinct if pair not in verdicts]
        died_on: Pair | None = None
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

    def _answers(self, pairs: Sequence[Pair]) -> Iterator[_Value]:
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

    def _value(self, verdict: str, pair: Pair) -> _Value:
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

    def _late(self, pair: Pair, reason: str) -> TimedOut:
        self.num_timeouts += 1
        _LOGGER.warning("comparing %r with %r: %s", pair.prediction[:80], pair.gold[:80], reason)
        return TimedOut(0.0, f"comparing {pair.prediction[:80]!r}: {reason}")


def _judged(text: str | None, answer: object, rules: dict[str, Any]) -> list[Pair | _Value]:
    """Return what is known without algebra of each of a row's gold answers; nothing where there is none."""
    if text is None:
        return []
    try:
        return [judge_cheaply(text, gold, **rules) for gold in gold_answers(answer)]
    except ValueError as error:
        return [Failed(str(error))]


def _best(values: Sequence[_Value]) -> _Value:
    """Return the verdict on an answer that may equal any of several gold answers.

    Where none is right, one that could not be compared comes before one that is wrong.
    """
    known = [value for value in values if value is not None]
    for kind in (Failed, TimedOut):
        if (
            1.0 not in known
            and (found := next((value for value in known if isinstance(value, kind)), None)) is not None
        ):
            return found
    return max((float(value) for value in known if not isinstance(value, Failed)), default=None)
