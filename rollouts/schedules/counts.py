"""How many tokens each denoising step commits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from unigrpo.types import PICTURE_SCHEDULES

if TYPE_CHECKING:
    from unigrpo.types import Schedule

DREAM_END = 1e-3
"""Where Dream's timesteps end."""


def linear_counts(num_masked: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Return how many tokens each step commits: equal shares, the remainder spread over the first steps.

    Args:
        num_masked: [N] masked positions of each row (LLaDA, arXiv 2502.09992, released sampler).
        num_steps: denoising steps.

    Returns:
        [N, num_steps] int64, rows sum to ``num_masked``.
    """
    share = num_masked[:, None] // num_steps
    remainder = num_masked[:, None] % num_steps
    return share + (torch.arange(num_steps, device=num_masked.device)[None] < remainder).long()


def picture_count(
    num_masked: torch.Tensor, num_positions: int, step: int, num_steps: int, schedule: str = "cosine"
) -> torch.Tensor:
    """Return how many tokens step ``step`` (0-based) commits under one of MaskGIT's schedules.

    After step k of K, floor(N f(k/K)) positions stay masked, at least one and fewer than before, until the last step
    commits all; f(r) is cos(pi/2 · r) for ``cosine`` and 1 - r² for ``pow2`` (MaskGIT, arXiv 2202.04200; the released
    text-to-image samplers of MMaDA and Show-o).

    Args:
        num_masked: [N] positions still masked in each row.
        num_positions: all positions of the span, given ones included.
        step: denoising step, from 0.
        num_steps: denoising steps.
        schedule: cosine or pow2.

    Returns:
        [N] int64.
    """
    if step == num_steps - 1:
        return num_masked
    ratio = torch.tensor((step + 1) / num_steps, dtype=torch.float32)  # the reference rounds in float32: 7 of 16, not 8
    left = 1.0 - ratio**2.0 if schedule == "pow2" else torch.cos(ratio * math.pi * 0.5)
    target = int(torch.floor(num_positions * left))
    still_masked = torch.clamp(torch.clamp(num_masked - 1, max=target), min=1)
    return torch.clamp(num_masked - still_masked, min=0)


def dream_fraction(step: int, num_steps: int) -> torch.Tensor:
    """Return which part of the masked positions step ``step`` (0-based) is to commit under Dream's timesteps.

    The times fall evenly from 1 to 0.001; a step from t to s commits 1 - s/t, the last one all (Dream 7B, arXiv
    2508.15487, released sampler). In float32, as there: counts are rounded down from it.
    """
    if step == num_steps - 1:
        return torch.ones(())
    times = torch.linspace(1.0, DREAM_END, num_steps + 1)
    return 1.0 - times[step + 1] / times[step]


def dream_count(num_masked: torch.Tensor, step: int, num_steps: int) -> torch.Tensor:
    """Return [N] int64: how many of ``num_masked`` [N] positions step ``step`` commits under Dream's timesteps."""
    return (num_masked.float() * dream_fraction(step, num_steps).to(num_masked.device)).long()


def mass_counts(num_masked: torch.Tensor, num_steps: int, schedule: Schedule, shift: float) -> torch.Tensor:
    """Return how many tokens each step commits, by a curve of how much is committed at a time t in [0, 1].

    ``shift``: s t / (1 + (s - 1) t), read backwards, so that s > 1 starts slowly and s < 1 fast. ``sine``:
    sin(pi t / 2) squared, slow at both ends, read backwards, too. A step commits at least one token; what that is too
    much is taken from the first, second, ... step of the curve in turn (LaViDa, released sampler).

    Args:
        num_masked: [N] masked positions of each row.
        num_steps: denoising steps.
        schedule: shift or sine.
        shift: s.

    Returns:
        [N, num_steps] int64, rows sum to ``num_masked``; with more steps than positions, ones first.
    """
    times = torch.linspace(0.0, 1.0, num_steps + 1)
    curve = shift * times / (1.0 + (shift - 1.0) * times)
    if schedule == "sine":
        curve = (1.0 - torch.cos(math.pi * times)) / 2.0
    rows = [_mass_counts(total, curve) for total in num_masked.tolist()]
    return torch.tensor(rows, dtype=torch.int64, device=num_masked.device)


def _mass_counts(total: int, curve: torch.Tensor) -> list[int]:
    counts = (curve * total).long().diff().clamp(min=1).tolist()
    if total < len(counts):
        return [1] * total + [0] * (len(counts) - total)
    surplus, step = sum(counts) - total, 0
    while surplus:
        if counts[step] > 1:
            counts[step] -= 1
            surplus -= 1
        step = (step + 1) % len(counts)
    return counts[::-1]


def expected_fraction(
    schedule: str, num_masked: torch.Tensor, num_positions: int, step: int, num_steps: int
) -> torch.Tensor:
    """Return [N] float32: with which probability a step commits each masked position by itself (``origin``).

    In the mean it commits what the schedule says; the last step commits all.

    Args:
        schedule: linear, cosine, pow2 or dream.
        num_masked: [N] positions still masked in each row.
        num_positions: all positions of the span.
        step: denoising step, from 0.
        num_steps: denoising steps.
    """
    if schedule in PICTURE_SCHEDULES:
        return picture_count(num_masked, num_positions, step, num_steps, schedule) / num_masked.clamp(min=1)
    fraction = dream_fraction(step, num_steps) if schedule == "dream" else torch.tensor(1.0 / (num_steps - step))
    return fraction.to(num_masked.device).expand(num_masked.shape)


def remasking_temperatures(initial: float, num_steps: int, schedule: str = "cosine") -> list[float]:
    """Return the temperature of the remasking noise at each step.

    Dream's stays as it is. Elsewhere it falls: MMaDA's reference multiplies the temperature by (1 - k/K) cumulatively,
    which falls faster than a linear decay.
    """
    if schedule == "dream":
        return [initial] * num_steps
    temperatures, current = [], initial
    for step in range(1, num_steps + 1):
        current *= 1.0 - step / num_steps
        temperatures.append(current)
    return temperatures
