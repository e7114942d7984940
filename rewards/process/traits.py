"""What a reward says of itself beyond its range: whether equal items have equal values, and which version it is."""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path
from typing import Any

from unigrpo import __version__
from unigrpo.rewards.process.adapt import AdaptedReward


def needs_whole_groups(reward: AdaptedReward) -> bool:
    """Return whether its class says ``needs_whole_groups = True``: a call then never splits a group."""
    return bool(getattr(reward.target, "needs_whole_groups", False))


def is_repeatable(reward: AdaptedReward) -> bool:
    """Return whether an item that was scored need not be scored again.

    Only where the class or function says ``is_deterministic = True``: each value depends on its own item alone, not on
    chance, on time or on the rest of the batch. What a base class says is of its own ``__call__``, not of one that a
    subclass puts in its place. Never where an item's value depends on its group.
    """
    target = reward.target
    is_said = bool(getattr(target, "is_deterministic", False)) and _is_of_its_call(target)
    return is_said and not needs_whole_groups(reward)


def _is_of_its_call(target: Any) -> bool:
    """Return whether ``is_deterministic`` was said no further up than where ``__call__`` was written."""
    if inspect.isroutine(target) or "is_deterministic" in getattr(target, "__dict__", {}):
        return True
    for kind in type(target).__mro__:
        if "is_deterministic" in vars(kind):
            return True
        if "__call__" in vars(kind):
            return False
    return False


def identity(reward: AdaptedReward) -> str:
    """Return what makes its values its own: ``version``, ``fingerprint`` (of weights), its source, and this package.

    A class or function may have the attribute ``version``; a class with weights sets ``fingerprint``, a hash of them.
    """
    target = reward.target
    parts = [f"{name}={getattr(target, name)}" for name in ("version", "fingerprint") if hasattr(target, name)]
    return ";".join([*parts, f"source={source_hash(target)}", f"unigrpo={__version__}"])


def source_hash(target: Any) -> str:
    """Return a hash of the file that a function or an object's class stands in, and of what it imports from beside it.

    Of a package beside it every module counts; those of other folders do not: for them there is ``version``.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(target) if inspect.isroutine(target) else type(target))
    except TypeError:  # Written in C.
        file = None
    if file is None or not Path(file).is_file():
        return "none"
    digest = hashlib.blake2b(digest_size=16)
    for name, source in sorted(sources_of(Path(file)).items()):
        digest.update(hashlib.blake2b(name.encode()).digest() + hashlib.blake2b(source).digest())
    return digest.hexdigest()


def sources_of(file: Path) -> dict[str, bytes]:
    """Return by name the source of a file and, over any number of steps, of what it imports from its folder.

    That is modules, and packages whole.
    """
    folder = file.parent
    found: dict[str, bytes] = {}
    pending = [file]
    while pending:
        path = pending.pop()
        name = path.relative_to(folder).as_posix()
        if name not in found and path.is_file():
            found[name] = path.read_bytes()
            for module in _imported(found[name]) - {"", "unigrpo"}:
                pending += [folder / f"{module}.py", *(folder / module).rglob("*.py")]
    return found


def _imported(source: bytes) -> set[str]:
    """Return every part of the dotted names that a source imports: which of them is a module, the folder knows."""
    dotted: list[str] = []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # So nobody imports it: the reward's own file has been by now.
        return set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            dotted += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            dotted.append(node.module or "")
    return {part for name in dotted for part in name.split(".")}
