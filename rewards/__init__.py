"""Rewards, one a file, and the pool that runs them; imports as ``unigrpo.rewards``."""

if __name__ == "rewards":
    raise ImportError("import this package as `unigrpo.rewards`, not as `rewards`")
