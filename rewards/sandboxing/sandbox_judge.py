"""The judge inside its own sandbox: runs a data set's test lines against a program that lives in another sandbox.

A name of the program is a stand-in here. Calling it ships the arguments as data and brings the value back as data;
what is not data comes back as another stand-in, which equals nothing but itself, so that an object with an ``__eq__``
of its own convinces nobody. A stand-in is a number that is only ever sent back to the program. Nothing that the program
sends is looked up here: built-in names, standard modules and the kinds of exceptions are the judge's own choice, by
what the tests say before the program has run.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from unigrpo.rewards.sandboxing.sandbox_harness import (
    Candidate,
    Channel,
    GoneError,
    RaisedError,
    Trap,
    UnshippableError,
    decode,
    encode,
    run_source,
)

_FIRST_DESCRIPTOR = 10
_RUNNING_TEXT = ("eval", "exec", "compile", "__import__")
_RUNNING_MODULES = ("pickle", "marshal", "shelve", "code", "runpy", "subprocess", "ctypes")
_RAISABLE = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, StopIteration | StopAsyncIteration)
}
"""What a program may raise here: not what would end a loop of the tests, as ``all(map(f, given))`` is one, early."""
_TESTS = "tests"
_MADE_BY_TESTS = (types.FunctionType, types.GeneratorType, types.ModuleType, range, map, filter, zip, enumerate)
"""Kinds of built-in values that no attribute of a program's data is of."""


class Client:
    """Asks a candidate; each test sets the ``deadline``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.deadline: float | None = None
        self.gone = ""
        """Why the candidate answers no more; it stays so, whatever a test makes of the exception."""

    def expect_ready(self, deadline: float) -> None:
        """Wait for the candidate's first word.

        Raises:
            GoneError: if there is none in time.
        """
        if self._channel.receive(deadline) != {"ready": True}:
            raise self._nonsense()

    def ask(self, do: str, *arguments: Any) -> Any:
        """Return the candidate's reply as it came.

        Raises:
            GoneError: if there is none in time.
            Exception: of the kind that the program raised.
        """
        if self.gone:
            raise GoneError(self.gone)
        try:
            self._channel.send({"do": do, "arguments": arguments}, self.deadline)
            answer = self._channel.receive(self.deadline)
        except GoneError as error:
            self.gone = str(error)
            raise
        if "raised" in answer:
            raise _as_raised(answer["raised"], answer.get("text"))
        return answer.get("reply")

    def value(self, reply: Any) -> Any:
        """Return the value of tagged data; nonsense ends the conversation."""
        try:
            return decode(reply, {"kept": self._stand_in})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._nonsense() from error

    def call(self, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call something of the program; arguments that it changes in place change here, too."""
        given = [encode(argument, _ship) for argument in arguments]
        named = {name: encode(argument, _ship) for name, argument in keywords.items()}
        reply = self.ask("call", encode(target, _ship), given, named)
        try:
            value, changed = reply["value"], {int(index): data for index, data in reply["changed"].items()}
            old = {index: arguments[index] for index in changed}
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise self._nonsense() from error
        for index, data in changed.items():
            _change(old[index], self.value(data))
        return self.value(value)

    def special(self, operation: str, target: Any, *arguments: Any) -> Any:
        """Do something other than a call to an object of the program."""
        given = [encode(argument, _ship) for argument in arguments]
        return self.value(self.ask("special", operation, encode(target, _ship), given))

    def _stand_in(self, index: Any) -> StandIn:
        if type(index) is not int or index < 0:
            raise TypeError("kept takes a number")
        return StandIn(self, index)

    def _nonsense(self) -> GoneError:
        self.gone = "sent nonsense"
        return GoneError(self.gone)


def _as_raised(kind: Any, text: Any) -> Exception:
    """Return the built-in exception of that name, where there is one that takes a text."""
    kind, text = (told if isinstance(told, str) else "nothing" for told in (kind, text))
    error: Exception = RaisedError(f"{kind}: {text}")
    if kind in _RAISABLE:
        with Trap():
            error = _RAISABLE[kind](text)
    return error


def _ship(value: Any) -> Any:
    if isinstance(value, StandIn):
        return {"kept": value._index}
    name = getattr(value, "__name__", "")
    if getattr(builtins, name or "-", None) is value:
        return {"builtin": name}
    kind = type(value)
    is_of_tests = isinstance(value, _MADE_BY_TESTS) or kind.__module__ not in ("builtins", __name__, Trap.__module__)
    if is_of_tests or (isinstance(value, type) and value.__module__ == _TESTS):
        raise UnshippableError(f"a {kind.__name__} is not data")
    raise TypeError(f"a {kind.__name__} is not data: it came of what the program gave")


def _change(old: Any, new: Any) -> None:
    """Make an argument equal to what the program left of it."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


class StandIn:
    """An object of the program. It does what a test asks by name, and equals nothing but itself."""

    __slots__ = ("_client", "_index")
    _client: Client
    _index: int

    def __init__(self, client: Client, index: int) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_index", index)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return self._client.special(operation, self, *arguments)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it in its own process."""
        return self._client.call(self, arguments, keywords)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StandIn) and self._index == other._index

    def __hash__(self) -> int:
        return hash(self._index)

    def __getattr__(self, name: str) -> Any:
        return self._ask("attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set_item", key, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list"))

    def __len__(self) -> int:
        return self._ask("length")

    def __bool__(self) -> bool:
        return self._ask("truth") is True

    def __str__(self) -> str:
        return self._ask("text")


class CodeTestRunner:
    """Runs the tests of one order and reports each."""

    def __init__(self, order: dict[str, Any], client: Client, send: Callable[[dict[str, Any]], None]) -> None:
        self._order, self._client, self._send = order, client, send
        self._namespace: dict[str, Any] = {"__name__": _TESTS}

    def report(self, **facts: Any) -> None:
        """Tell the outside, with the order's nonce."""
        self._send({"nonce": self._order["nonce"], **facts})

    def run(self) -> None:
        """Load the program and run the tests; one that the program leaves for good takes the rest with it."""
        trees = self._parsed()
        if trees is None:
            return
        with Trap() as trap:
            self._client.deadline = time.monotonic() + self._order["timeout_s"]
            names = self._client.ask("load", self._order["setup"], self._order["program"])
            self._bind(names, trees)
        if trap.error is not None:
            self.report(stopped=_reason(trap.error))
            return
        self.report(loaded=True)
        for index in range(len(self._order["tests"])):
            with Trap() as trap:
                self._client.deadline = time.monotonic() + self._order["timeout_s"]
                self._run_test(self._order["tests"][index])
            if self._client.gone:
                self.report(stopped=self._client.gone)
                return
            if isinstance(trap.error, UnshippableError):
                self.report(broken=f"test {index} cannot be asked across processes: {trap.error}")
                return
            self.report(index=index, passed=trap.error is None, reason=_reason(trap.error))
        self.report(done=True)

    def _parsed(self) -> list[ast.Module] | None:
        """Return the syntax of setup and tests; None, after a report, where one has none."""
        trees = []
        for index, source in enumerate([self._order["setup"], *self._order["tests"]]):
            with Trap() as trap:
                trees.append(ast.parse(source))
                if index == 0:
                    run_source(source, "<setup>", self._namespace)
                if found := _run_by_tests(trees[-1]):
                    raise ValueError(f"it uses {found}, by which a program's text could take over the judge")
            if trap.error is not None:
                place = f"test {index - 1}" if index else "the setup"
                self.report(broken=f"{place} does not run: {_reason(trap.error)}")
                return None
        return trees

    def _bind(self, names: Any, trees: list[ast.Module]) -> None:
        """Give the tests the program's names that they use, and the classes of the setup, which are the program's."""
        entry = self._order["entry_point"]
        classes = {node.name for node in trees[0].body if isinstance(node, ast.ClassDef)}
        used = {node.id for tree in trees[1:] for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used -= {name for name in used if name.startswith("__")}
        asked = {*classes, entry, entry.split(".")[0]}
        for name in used - set(self._namespace) - asked:
            if module := _module_meant(name, trees[1:]):
                self._namespace[name] = module
        own = set(self._namespace) | set(dir(builtins))
        for name in used & set(names):
            if name in asked or name not in own:
                self._namespace[name] = self._client.value(self._client.ask("get", name))
        if entry:
            self._namespace["candidate"] = self._client.value(self._client.ask("get", entry))

    def _run_test(self, source: str) -> None:
        """Run a test; of a test that defines ``check(candidate)``, as HumanEval's do, that function."""
        run_source(source, "<test>", self._namespace)
        check = self._namespace.pop("check", None)
        if isinstance(check, types.FunctionType) and "candidate" in self._namespace:
            check(self._namespace["candidate"])


def _run_by_tests(tree: ast.Module) -> str:
    """Return what the tests use that runs a text which may be the program's, or an empty text."""
    fixed: set[int] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if (
            isinstance(node, ast.Call)
            and not node.keywords
            and all(isinstance(item, ast.Constant) for item in node.args)
        ):
            fixed.add(id(node.func))
        elif isinstance(node, ast.Name) and node.id in _RUNNING_TEXT and id(node) not in fixed:
            names = [node.id]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        if found := [name for name in names if name in _RUNNING_TEXT + _RUNNING_MODULES]:
            return found[0]
    return ""


def _module_meant(name: str, trees: list[ast.Module]) -> types.ModuleType | None:
    """Return the standard module that the tests mean by a name: they use it for the module's attributes alone."""
    if name not in sys.stdlib_module_names or name in _RUNNING_MODULES:
        return None
    nodes = [node for tree in trees for node in ast.walk(tree)]
    attributes = [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    ]
    num_uses = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    if len(attributes) < num_uses:
        return None
    module = None
    with Trap():
        module = importlib.import_module(name)
        for attribute in attributes:
            with Trap():
                importlib.import_module(f"{name}.{attribute}")
    return module if all(hasattr(module, attribute) for attribute in attributes) else None


def _reason(error: BaseException | None) -> str:
    if error is None:
        return ""
    with Trap():
        return f"{type(error).__name__}: {error}"[:200]
    return type(error).__name__


def main(role: str, limits: dict[str, int]) -> None:
    """Take the role of a fresh process: descriptor 0 is the way out; the judge's way to the candidate is 1."""
    descriptors = [os.dup2(source, _FIRST_DESCRIPTOR + source, inheritable=False) for source in (0, 1)]
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    _limit(limits)
    control = Channel(descriptors[0])
    control.send({"ready": True})
    if role == "candidate":
        os.close(descriptors[1])
        with Trap():
            Candidate().serve(control)
        return
    client = Client(Channel(descriptors[1]))
    order = control.receive()
    judge = CodeTestRunner(order, client, control.send)
    with Trap() as trap:
        client.expect_ready(time.monotonic() + order["start_timeout_s"])
    if trap.error is not None:
        judge.report(trouble=f"the program's sandbox did not start: it {_reason(trap.error)}")
        return
    judge.report(ready=True)
    judge.run()


def _limit(limits: dict[str, int]) -> None:
    """Set hard limits, and make this process the first that the kernel ends when memory runs out."""
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
    with Trap(), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
