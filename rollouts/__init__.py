"""Samplers and the actors that run them; imports as ``unigrpo.rollouts``."""

if __name__ == "rollouts":
    raise ImportError("import this package as `unigrpo.rollouts`, not as `rollouts`")
