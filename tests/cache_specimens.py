"""Rewards that say how often they were called; worker processes load them by path."""

import os
import random
from collections import Counter
from pathlib import Path
from weakref import WeakValueDictionary


def counted(completions, answer, counter, **columns):
    """Value: length; every item that is scored adds a line to the file."""
    with Path(counter).open("a") as file:
        file.writelines(f"{'picture' if not isinstance(one, str) else one}\n" for one in completions)
    return [float(len(one)) if isinstance(one, str) else float(one.size[0]) for one in completions]


counted.is_deterministic = True


def says_nothing(completions, counter, **columns):
    return counted(completions, None, counter)


def fails_on_bomb(completions, counter, **columns):
    counted(completions, None, counter)
    if "bomb" in completions:
        raise OSError("no answer")
    return [None if one == "none" else 1.0 for one in completions]


fails_on_bomb.is_deterministic = True


def logs(completions, log_metric, **columns):
    log_metric("number", len(completions))
    return [1.0] * len(completions)


logs.is_deterministic = True


async def asks_somebody(completions, counter, **columns):
    return counted(completions, None, counter)


def rarity(completions, **columns):
    counts = Counter(completions)
    return [1.0 / counts[completion] for completion in completions]


def chance(completions, **columns):
    generator = random.SystemRandom()
    return [generator.random() for _ in completions]


class Weights:
    range = (0.0, 10.0)
    is_deterministic = True
    wanted_columns = ("answer",)

    def __init__(self, counter, fingerprint="a"):
        self.counter, self.fingerprint = counter, fingerprint

    def __call__(self, *, completions, **columns):
        return counted(completions, None, self.counter)


class Reweighted(Weights):
    """A call of its own: what the base says is not of it."""

    def __call__(self, *, completions, **columns):
        return [value / len(completions) for value in super().__call__(completions=completions)]


class Diversity:
    """Value: different texts in the item's group, over 10; fails, hangs or dies where a group holds a bomb."""

    needs_whole_groups = True

    def __init__(self, bomb="raise"):
        self.bomb = bomb

    def __call__(self, *, completions, group_ids, **columns):
        if "bomb" in completions:
            if self.bomb == "exit":
                os._exit(1)
            raise ValueError("bomb")
        groups = {}
        for text, group in zip(completions, group_ids, strict=True):
            groups.setdefault(group, []).append(text)
        assert all(len(group) == 4 for group in groups.values())
        return [len(set(groups[group])) / 10 for group in group_ids]


class Body:
    pass


BODIES = WeakValueDictionary()


class Shared:
    """Value: the process, and whether another reward of it had made the body already."""

    is_deterministic = False

    def __init__(self, is_bomb=False):
        self.was_there = "body" in BODIES
        self.body = BODIES.setdefault("body", Body()) if self.was_there else Body()
        BODIES["body"] = self.body
        self.is_bomb = is_bomb

    def __call__(self, *, completions, log_metric, **columns):
        if self.is_bomb and "bomb" in completions:
            os._exit(1)
        log_metric("was_there", float(self.was_there))
        return [float(os.getpid())] * len(completions)
