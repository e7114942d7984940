"""What a run tells whoever watches it: phases, progress, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Observer(Protocol):
    """Hears of a run as it happens; it may show, it may not change the run."""

    def phase(self, text: str) -> None:
        """Hear what the run does, or waits for, from now on: "loading policy"."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Hear that `done` of `total` pieces of the phase are finished; `text` names the pieces."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Hear the metrics of one learner step, as they go to metrics.jsonl."""

    def done(self, summary: Mapping[str, Any]) -> None:
        """Hear the summary of the run, as it goes to summary.json."""


class SilentObserver:
    """Shows nothing."""

    def phase(self, text: str) -> None:
        """Ignore the phase."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Ignore the progress."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Ignore the metrics."""

    def done(self, summary: Mapping[str, Any]) -> None:
        """Ignore the summary."""
