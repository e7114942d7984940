"""What a schedule is: the rule that says how many masked positions a denoising step commits.

Letters: **n** rows. A block is filled over its share of the denoising steps; a schedule sees one block of each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a block stands before a denoising step."""

    num_at_start: torch.Tensor
    """[n] int64: masked positions when the block was started."""
    num_masked: torch.Tensor
    """[n] int64: masked positions now."""
    num_positions: int
    """All positions of the block, given ones included."""
    step: int
    """From 0."""
    num_steps: int


class Schedule(Protocol):
    """A rule for counts. A row's count depends on that row alone; the last step commits what is left."""

    is_for_pictures: ClassVar[bool]
    """Whether it counts all codes of a picture, given ones too."""
    is_fixed: ClassVar[bool]
    """Whether its counts follow from ``num_at_start`` alone; then steps beyond the masked positions commit nothing."""
    is_cooling: ClassVar[bool]
    """Whether the temperature of the remasking noise falls over the steps."""

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: how many masked positions the step commits."""

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: with which probability an order that commits each position by itself commits one.

        In the mean it commits what the schedule says; the last step commits all.
        """


def noise_temperature(schedule: Schedule, initial: float, step: int, num_steps: int) -> float:
    """Return the temperature of the remasking noise at a step, from 0.

    Where it falls, MMaDA's reference multiplies it by (1 - k/K) cumulatively: faster than a linear decay.
    """
    if not schedule.is_cooling:
        return initial
    temperature = initial
    for number in range(1, step + 2):
        temperature *= 1.0 - number / num_steps
    return temperature


class PictureSchedule(ABC):
    """One of MaskGIT's: after step k of K, floor(N f(k/K)) of N positions stay masked, at least one, fewer than before.

    The last step commits all (MaskGIT, arXiv 2202.04200; the released text-to-image samplers of MMaDA and Show-o).
    """

    @abstractmethod
    def left(self, ratio: torch.Tensor) -> torch.Tensor:
        """Return [] float32, f of k/K."""

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: what is masked beyond the curve; in float32, as in the reference: 7 of 16, not 8."""
        if progress.step == progress.num_steps - 1:
            return progress.num_masked
        ratio = torch.tensor((progress.step + 1) / progress.num_steps, dtype=torch.float32)
        target = int(torch.floor(progress.num_positions * self.left(ratio)))
        still_masked = torch.clamp(torch.clamp(progress.num_masked - 1, max=target), min=1)
        return torch.clamp(progress.num_masked - still_masked, min=0)

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: the count as a part of what is masked."""
        return self.count(progress) / progress.num_masked.clamp(min=1)


class CurveSchedule(ABC):
    """One of LaViDa's: a curve of how much is masked at a time in [0, 1], read backwards (see `curve_counts`)."""

    @abstractmethod
    def curve(self, times: torch.Tensor) -> torch.Tensor:
        """Return [K + 1] float32, rising from 0 to 1, at [K + 1] times."""

    def counts(self, num_masked: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Return [n, K] int64 of [n] masked positions when the block was started."""
        return curve_counts(num_masked, self.curve(torch.linspace(0.0, 1.0, num_steps + 1)))

    def count(self, progress: Progress) -> torch.Tensor:
        """Return [n] int64: the step's own."""
        return self.counts(progress.num_at_start, progress.num_steps)[:, progress.step]

    def expected_fraction(self, progress: Progress) -> torch.Tensor:
        """Return [n] float32: the step's count as a part of what is to come."""
        counts = self.counts(progress.num_at_start, progress.num_steps)
        return counts[:, progress.step] / counts[:, progress.step :].sum(dim=1).clamp(min=1)


def curve_counts(num_masked: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Return how many positions each step commits, by a curve of how much is masked at a time t in [0, 1].

    The curve is read backwards. A step commits at least one position; what that is too much is taken from the first,
    second, ... step of the curve in turn (LaViDa, released sampler).

    Args:
        num_masked: [n] masked positions when the block was started.
        curve: [K + 1] float32, rising from 0 to 1.

    Returns:
        [n, K] int64, rows sum to ``num_masked``; with more steps than positions, ones first.
    """
    totals = num_masked.tolist()
    counts = {total: _curve_counts(total, curve) for total in set(totals)}
    return torch.tensor([counts[total] for total in totals], dtype=torch.int64, device=num_masked.device)


def _curve_counts(total: int, curve: torch.Tensor) -> list[int]:
    reached = (curve * total).long()
    reached[-1] = total  # where the curve's end is 1 up to rounding
    counts = reached.diff().clamp(min=1).tolist()
    if total < len(counts):
        return [1] * total + [0] * (len(counts) - total)
    surplus, step = sum(counts) - total, 0
    while surplus:
        if counts[step] > 1:
            counts[step] -= 1
            surplus -= 1
        step = (step + 1) % len(counts)
    return counts[::-1]
