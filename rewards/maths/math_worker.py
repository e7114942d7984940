r"""The child process in which math-verify compares answers; never imported by the parent (sympy takes half a second).

math-verify stops Python code by SIGALRM, which works here because this is a main thread; what does not stop is killed
by the parent. A message ``{"pairs": [[prediction, gold, is_prose], …], "deadline_s": …}`` is answered by one
``{"verdict": …}`` a pair, in order: ``right``, ``wrong``, or ``unreadable`` where the gold answer cannot be parsed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import sympy
from math_verify import parse, verify

from unigrpo.rewards.maths.guards import has_relation, is_membership
from unigrpo.rewards.runtime.child import Send, limit_memory, serve

MEMORY_GB = 2.0
_MIN_TIMEOUT_S = 3
_INNER_FRACTION = 0.75
"""Of the parent's deadline: what math-verify may take for each of its steps, so that most of them end by themselves."""


def compare(prediction: str, gold: str, *, is_prose: bool, timeout_s: int = 3) -> str:
    r"""Return the verdict on one pair.

    Both are wrapped in ``\boxed{}``: undelimited LaTeX is read only where it is a plain number. Prose is left to the
    parser's own search for an anchor and the last expression. A step that takes longer than ``timeout_s`` fails.
    """
    golds = parse(_boxed(gold), parsing_timeout=timeout_s)
    if not golds:
        return "unreadable"
    predictions = parse(prediction if is_prose else _boxed(prediction), parsing_timeout=timeout_s)
    if not predictions:
        return "wrong"
    if not is_prose and "=" in prediction and "=" not in gold and _disagrees_with_itself(prediction, timeout_s):
        return "wrong"
    is_right = verify(
        golds,
        predictions,
        timeout_seconds=timeout_s,
        # An interval may be answered by the inequality that describes it.
        allow_set_relation_comp=has_relation(prediction) and (not has_relation(gold) or is_membership(gold)),
    )
    is_right = is_right or any(_same_solutions(g, p) or _same_constant(g, p) for g in golds for p in predictions)
    return "right" if is_right else "wrong"


def _boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def _disagrees_with_itself(chain: str, timeout_s: int) -> bool:
    """Return whether two sides of a chain of equalities are different numbers."""
    numbers = []
    for side in chain.split("="):
        parsed = parse(_boxed(side), parsing_timeout=timeout_s)
        if parsed and isinstance(parsed[0], sympy.Expr) and not parsed[0].free_symbols:
            numbers.append(parsed[0])
    return any(not verify(numbers[0], number, timeout_seconds=timeout_s) for number in numbers[1:])


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
    return bool(abs(sympy.N(prediction.subs(meaning) - gold)) < 1e-9)


def _handle(message: Mapping[str, Any], send: Send) -> None:
    if "pairs" not in message:
        send({"ready": True})
        return
    timeout_s = max(_MIN_TIMEOUT_S, int(_INNER_FRACTION * message["deadline_s"]))
    for prediction, gold, is_prose in message["pairs"]:
        send({"verdict": _guarded_compare(prediction, gold, is_prose, timeout_s)})


def _guarded_compare(prediction: str, gold: str, is_prose: bool, timeout_s: int) -> str:
    """Return the verdict; what the algebra system cannot digest is a wrong answer."""
    try:
        return compare(prediction, gold, is_prose=is_prose, timeout_s=timeout_s)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        logging.getLogger(__name__).debug("cannot compare %r with %r: %s", prediction, gold, error)
        return "wrong"
    except NotImplementedError:
        return "wrong"


if __name__ == "__main__":
    limit_memory(MEMORY_GB)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    sys.setrecursionlimit(2000)
    serve(_handle, sys.argv[1:])
