"""Rewards that misbehave, one way each; the worker processes load them by path."""

import os
import resource
import signal
import time
from pathlib import Path


def length(completions, **columns):
    return [float(len(completion)) / 100 for completion in completions]


def hang_on_bomb(completions, **columns):
    if "bomb" in completions:
        time.sleep(3600)
    return length(completions)


def spin_on_bomb(completions, **columns):
    if "bomb" in completions:
        9**9**9
    return length(completions)


def exit_on_bomb(completions, **columns):
    if "bomb" in completions:
        os._exit(3)
    return length(completions)


def raise_on_bomb(completions, **columns):
    if "bomb" in completions:
        raise KeyError("no such thing")
    return length(completions)


def system_exit_on_bomb(completions, **columns):
    if "bomb" in completions:
        raise SystemExit(0)
    return length(completions)


def killed_once(completions, marker, **columns):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return length(completions)


def odd_values(completions, **columns):
    values = {"nan": float("nan"), "inf": float("inf"), "text": "x", "none": None, "true": True}
    return [values.get(completion, 0.5) for completion in completions]


def one_element_list(completions, **columns):
    return [1.0]


def scalar(completions, **columns):
    return 1.0


def one_too_many(completions, **columns):
    return [1.0] * (len(completions) + 1)


def raise_or_too_many(completions, **columns):
    raise_on_bomb(completions)
    return one_too_many(completions)


def always_raises(completions, **columns):
    raise OSError("the server is down")


always_raises.is_deterministic = False


async def asynchronous(completions, answer, log_metric, trainer_state):
    log_metric("half", 0.5)
    return [float(trainer_state.global_step + len(given)) for given in answer]


def images_and_columns(prompts, completions, images, task, difficulty, completion_ids):
    return [
        float(completion.size[0] + 10 * len(own) + 100 * level + 1000 * len(ids))
        for completion, own, level, ids in zip(completions, images, difficulty, completion_ids, strict=True)
    ]


def size_of_call(completions, log_metric):
    log_metric("size", len(completions))
    return [float(len(completions))] * len(completions)


def process_id(completions, **columns):
    return [float(os.getpid())] * len(completions)


process_id.is_deterministic = False


class Unloadable:
    def __init__(self):
        raise FileNotFoundError("weights.safetensors is missing")

    def __call__(self, completions, **columns):
        return []


class Scaled:
    range = (-2.0, 3.0)

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, *, prompts, completions, **columns):
        if "bomb" in completions:
            time.sleep(3600)
        return [self.factor] * len(completions)


def address_space_gb(completions, **columns):
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [-1.0 if limit == resource.RLIM_INFINITY else limit / 2**30] * len(completions)


class AddressSpace:
    range = (-1.0, 100.0)

    def __call__(self, *, completions, **columns):
        return address_space_gb(completions)


class AddressSpaceOfItsOwn(AddressSpace):
    memory_limit_gb = 1.0


class Greedy:
    range = (0.0, 1.0)
    memory_limit_gb = 1.0

    def __call__(self, *, completions, **columns):
        if "bomb" in completions:
            bytearray(4 << 30)
        return [0.5] * len(completions)


def always_hangs(completions, **columns):
    time.sleep(3600)


always_hangs.is_deterministic = False


def timed_out(completions, **columns):
    from unigrpo.rewards.base import TimedOut

    return [TimedOut(0.0, "it would not end") for _ in completions]


def beyond(completions, **columns):
    return [{"low": -0.5, "high": 3.0, "rounded": 1.0 + 1e-9}.get(completion, 0.5) for completion in completions]


def prints(completions, **columns):
    print("printed \x1b[31m\ud800")
    return length(completions)


def kills_itself(completions, **columns):
    os.kill(os.getpid(), signal.SIGKILL)


_IS_WARM = []


def slow_at_first(completions, **columns):
    if not _IS_WARM:
        warm_up()
    return length(completions)


def warm_up():
    time.sleep(2.0)
    _IS_WARM.append(True)


def warmed(completions, **columns):
    return slow_at_first(completions)


warmed.warm_up = warm_up
