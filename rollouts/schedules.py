"""How many tokens each denoising step commits."""

from __future__ import annotations

import math

import torch

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


def cosine_count(num_masked: torch.Tensor, num_positions: int, step: int, num_steps: int) -> torch.Tensor:
    """Return how many tokens step ``step`` (0-based) commits under MaskGIT's cosine schedule.

    After step k of K, floor(N cos(pi/2 · k/K)) positions stay masked, at least one and fewer than before, until the
    last step commits all (MaskGIT, arXiv 2202.04200; MMaDA's released text-to-image sampler).

    Args:
        num_masked: [N] positions still masked in each row.
        num_positions: all positions of the span, given ones included.
        step: denoising step, from 0.
        num_steps: denoising steps.

    Returns:
        [N] int64.
    """
    if step == num_steps - 1:
        return num_masked
    ratio = torch.tensor((step + 1) / num_steps, dtype=torch.float32)  # the reference rounds in float32: 7 of 16, not 8
    target = int(torch.floor(num_positions * torch.cos(ratio * math.pi * 0.5)))
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


def expected_fraction(
    schedule: str, num_masked: torch.Tensor, num_positions: int, step: int, num_steps: int
) -> torch.Tensor:
    """Return [N] float32: with which probability a step commits each masked position by itself (``origin``).

    In the mean it commits what the schedule says; the last step commits all.

    Args:
        schedule: linear, cosine or dream.
        num_masked: [N] positions still masked in each row.
        num_positions: all positions of the span.
        step: denoising step, from 0.
        num_steps: denoising steps.
    """
    if schedule == "cosine":
        return cosine_count(num_masked, num_positions, step, num_steps) / num_masked.clamp(min=1)
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
