r"""The child process in which math-verify compares answers; never imported by the parent (sympy takes half a second).

Time is CPU time of this process, so that a busy machine changes no verdict: Python code is stopped by SIGVTALRM, which
works here because this is a main thread, and what does not stop is ended by the kernel (``cpu_s``, see ``serve``).

``{"hello": true}`` is answered by ``{"ready": true}`` once one comparison of each kind has been made. A message
``{"pairs": [[prediction, gold, is_prose], …], "cpu_s": …}`` is answered, for each pair in order, by
``{"is_partial": true}`` when its gold answer has been read, then by ``{"verdict": …}``: ``right``, ``wrong``,
``unreadable`` where the gold answer cannot be parsed, ``late`` and ``gold_late`` where the comparison or the gold
answer took too long.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from math_verify import parse, verify
from math_verify.errors import TimeoutException

from unigrpo.rewards.maths import numbers
from unigrpo.rewards.maths.guards import has_relation, is_membership
from unigrpo.rewards.process.child import Send, limit_memory, serve

MEMORY_GB = 2.0
_MIN_TIMEOUT_S = 3.0
_INNER_FRACTION = 0.75
"""Share of ``cpu_s`` that each step may take, so that most of those that take too long end by themselves."""
_WARM_UP_TIMEOUT_S = 60.0
_WARM_UP = (
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    ("x > 3", "2x > 6"),
    (r"-2 \le x \le 7", r"x \in [-2,7]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\int_0^1 x dx", "0.5"),
)
"""Equal pairs, one of each kind of comparison: the first of a kind imports and builds what the others find ready."""


class _Limit:
    """A block whose Python code is stopped after so many CPU seconds, and once more after each such time.

    math-verify turns the exception into "no result", and goes on with its next try; hence ``has_passed``.
    """

    def __init__(self, cpu_s: float) -> None:
        self.has_passed = False
        self._cpu_s = cpu_s
        self._is_on = False

    def __enter__(self) -> _Limit:
        self._is_on = True
        signal.signal(signal.SIGVTALRM, self._pass)
        signal.setitimer(signal.ITIMER_VIRTUAL, self._cpu_s, self._cpu_s)
        return self

    def __exit__(self, *details: object) -> None:
        self._is_on = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)

    def _pass(self, number: int, frame: object) -> None:
        if self._is_on:
            self.has_passed = True
            raise TimeoutException(f"{self._cpu_s:g} CPU seconds have passed")


def compare(
    prediction: str, gold: str, *, is_prose: bool, timeout_s: float, on_gold: Callable[[], None] = lambda: None
) -> str:
    r"""Return the verdict on one pair.

    Both are wrapped in ``\boxed{}``: undelimited LaTeX is read only where it is a plain number. Prose is left to the
    parser's own search for an anchor and the last expression. A step that takes more than ``timeout_s`` CPU seconds
    fails; ``on_gold`` is called when the gold answer has been read.
    """
    with _Limit(timeout_s) as limit:
        golds = _parsed(_boxed(gold))
    if limit.has_passed:
        return "gold_late"
    if not golds:
        return "unreadable"
    on_gold()
    with _Limit(timeout_s) as limit:
        predictions = _parsed(prediction if is_prose else _boxed(prediction))
        if not predictions:
            return "late" if limit.has_passed else "wrong"
        if not is_prose and "=" in prediction and "=" not in gold and _disagrees_with_itself(prediction):
            return "wrong"
    if limit.has_passed:
        return "late"
    with _Limit(timeout_s) as limit:
        is_right = _are_equal(prediction, gold, golds, predictions)
    if is_right:
        return "right"
    return "late" if limit.has_passed else "wrong"


def _parsed(text: str) -> list[Any]:
    return list(parse(text, parsing_timeout=None))  # type: ignore[arg-type]  # None leaves the limit to us.


def _are_equal(prediction: str, gold: str, golds: list[Any], predictions: list[Any]) -> bool:
    is_right = verify(
        golds,
        predictions,
        timeout_seconds=None,
        # An interval may be answered by the inequality that describes it.
        allow_set_relation_comp=has_relation(prediction) and (not has_relation(gold) or is_membership(gold)),
    )
    return is_right or any(_same_solutions(g, p) or _same_constant(g, p) for g in golds for p in predictions)


def _boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def _disagrees_with_itself(chain: str) -> bool:
    """Return whether two sides of a chain of equalities are different numbers."""
    numbers = []
    for side in chain.split("="):
        parsed = _parsed(_boxed(side))
        if parsed and isinstance(parsed[0], sympy.Expr) and not parsed[0].free_symbols:
            numbers.append(parsed[0])
    return any(not verify(numbers[0], number, timeout_seconds=None) for number in numbers[1:])


def _same_solutions(gold: object, prediction: object) -> bool:
    """Return whether two inequalities in one variable hold for the same reals (``2x > 6`` and ``x > 3``)."""
    if not (isinstance(gold, sympy.core.relational.Relational) and type(gold) is not sympy.Eq):
        return False
    if not isinstance(prediction, sympy.core.relational.Relational) or isinstance(prediction, sympy.Eq):
        return False
    if len(gold.free_symbols) != 1 or gold.free_symbols != prediction.free_symbols:
        return False
    (name,) = gold.free_symbols
    variable = sympy.Symbol(name.name, real=True)
    linear = [relation.subs(name, variable) for relation in (gold, prediction)]
    if not all(
        sympy.Poly(side, variable).degree() <= 1 for r in linear for side in (r.lhs, r.rhs) if side.has(variable)
    ):
        return False
    return bool(linear[0].as_set() == linear[1].as_set())


def _same_constant(gold: object, prediction: object) -> bool:
    r"""Return whether an expression in ``e`` and ``i`` alone is the gold number (``e^{i\pi}`` and ``-1``)."""
    if not isinstance(gold, sympy.Expr) or not isinstance(prediction, sympy.Expr) or gold.free_symbols:
        return False
    names = {symbol.name for symbol in prediction.free_symbols}
    if not names or not names <= {"e", "i"}:
        return False
    meaning = {symbol: sympy.E if symbol.name == "e" else sympy.I for symbol in prediction.free_symbols}
    return numbers.is_same_number(gold, prediction.subs(meaning))


def _handle(message: Mapping[str, Any], send: Send) -> None:
    if "pairs" not in message:
        _warm_up()
        send({"ready": True})
        return
    timeout_s = max(_MIN_TIMEOUT_S, _INNER_FRACTION * message["cpu_s"])
    for prediction, gold, is_prose in message["pairs"]:
        send({"verdict": _guarded_compare(prediction, gold, is_prose, timeout_s, lambda: send({"is_partial": True}))})


def _warm_up() -> None:
    for prediction, gold in _WARM_UP:
        verdict = compare(prediction, gold, is_prose=False, timeout_s=_WARM_UP_TIMEOUT_S)
        if verdict != "right":
            raise RuntimeError(f"math-verify finds {prediction} against {gold} {verdict}; is its installation whole?")


def _guarded_compare(prediction: str, gold: str, is_prose: bool, timeout_s: float, on_gold: Callable[[], None]) -> str:
    """Return the verdict; what the algebra system cannot digest is a wrong answer."""
    has_gold = False

    def note_gold() -> None:
        nonlocal has_gold
        has_gold = True
        on_gold()

    try:
        return compare(prediction, gold, is_prose=is_prose, timeout_s=timeout_s, on_gold=note_gold)
    except TimeoutException:
        return "late" if has_gold else "gold_late"
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        logging.getLogger(__name__).debug("cannot compare %r with %r: %s", prediction, gold, error)
        return "wrong"
    except NotImplementedError:
        return "wrong"


numbers.install()

if __name__ == "__main__":
    limit_memory(MEMORY_GB)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    sys.setrecursionlimit(2000)
    serve(_handle, sys.argv[1:])
