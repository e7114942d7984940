"""One reward in the four forms that a user may write, which misbehaves on request: an item "bomb KIND [FORM]"."""

import asyncio
import os
import signal
import time

import numpy as np


class TimeoutException(BaseException):
    """As math-verify's: no ``except Exception`` sees it."""


def die(kind):
    if kind == "exception":
        raise KeyError("no such thing")
    if kind == "base_exception":
        raise TimeoutException("Operation timed out!")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "exit":
        os._exit(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(3600)
    if kind == "fork":
        os.fork()  # Both go on, and both answer.


ODD = {
    "nan": float("nan"),
    "inf": float("inf"),
    "none": None,
    "dict": {"score": 1.0},
    "array": np.ones(2),
    "text": "1.0",
}
WHOLE = {
    "short": lambda values: values[:1],
    "long": lambda values: [*values, 0.0],
    "scalar": lambda values: 1.0,
    "mapping": lambda values: dict(enumerate(values)),
    "nothing": lambda values: None,
    "matrix": lambda values: np.ones((len(values), 2)),
    "numpy": lambda values: np.array(values, dtype=np.float32),
}


def value_of(text):
    return len(text) / 2**20


def misbehave(texts, form):
    """Return the values of all texts, after doing what a bomb says."""
    values, result = [], None
    for text in texts:
        bomb, _, rest = text.partition(" ")
        kind, _, only = rest.partition(" ")
        if bomb == "bomb" and only in ("", form):
            die(kind)
            values.append(ODD.get(kind, value_of(text)))
            result = WHOLE.get(kind, result)
        else:
            values.append(value_of(text))
    return values if result is None else result(values)


def function(completions, **columns):
    return misbehave(completions, "function")


async def coroutine(completions, **columns):
    await asyncio.sleep(0)
    return misbehave(completions, "coroutine")


class Class:
    range = (-1.0, 1.0)

    def __call__(self, *, prompts, completions, **columns):
        return misbehave(completions, "Class")


def trl(completions: list[list[dict[str, str]]], **kwargs):
    return misbehave([completion[0]["content"] for completion in completions], "trl")
