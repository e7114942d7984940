"""Samplers and the actors that run them; imports as ``unigrpo.rollouts``."""

from typing import Any

if __name__ == "rollouts":
    raise ImportError("import this package as `unigrpo.rollouts`, not as `rollouts`")

__all__ = ["SampleOutput", "sample", "sample_ids"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unigrpo.rollouts import sampler  # imports torch, so only when asked for

    return getattr(sampler, name)
