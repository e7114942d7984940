"""One reward in one worker process: called with columns, answering with outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unigrpo.rewards.runtime.isolation import Reply, outcomes_of
from unigrpo.rewards.runtime.process import RewardLoadError, RewardPoolClosedError, RewardProcess, Traits, child_of
from unigrpo.settings import RewardSettings

__all__ = ["RewardLoadError", "RewardPoolClosedError", "RewardWorker"]


@dataclass(kw_only=True)
class RewardWorker:
    """One reward in a process of its own, or in one that it shares."""

    name: str
    settings: RewardSettings
    folder: Path | None
    start_timeout_s: float
    process: RewardProcess | None = None
    """A process that other rewards use, too; None is one of its own."""

    def __post_init__(self) -> None:
        """Order the reward."""
        if self.process is None:
            open_child = partial(child_of, self.settings, self.folder)
            self.process = RewardProcess(name=self.name, open_child=open_child, start_timeout_s=self.start_timeout_s)
        folder = str(self.folder) if self.folder else None
        order = {"use": self.settings.use, "arguments": self.settings.arguments, "folder": folder}
        self.process.add(self.name, {**order, "memory_limit_gb": self.settings.memory_limit_gb})

    @property
    def _process(self) -> RewardProcess:
        assert self.process is not None
        return self.process

    @property
    def num_restarts(self) -> int:
        """Return how often the process was replaced."""
        return self._process.num_restarts

    @property
    def traits(self) -> Traits:
        """Return what the reward says of itself; it must be loaded."""
        return self._process.traits[self.name]

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest value."""
        return self.traits.range

    def open(self) -> None:
        """Start the process, also after :meth:`close`."""
        self._process.open()

    def wait_until_loaded(self) -> None:
        """Wait for the reward to be made.

        Raises:
            RewardLoadError: if it could not be.
        """
        self._process.wait_until_loaded()

    def call(self, columns: Mapping[str, Any], step: int) -> Reply:
        """Return the outcomes of one batch, or raise as :mod:`unigrpo.rewards.runtime.isolation` says."""
        timeout_s = self.settings.timeout_s
        message = {"reward": self.name, "columns": columns, "step": step, "deadline_s": timeout_s}
        return outcomes_of(self._process.exchange(message, timeout_s=timeout_s))

    def close(self) -> None:
        """End the process, and let no retry start another."""
        self._process.close()
