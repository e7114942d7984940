"""How many tokens each denoising step commits."""

from __future__ import annotations

import math

import torch


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


def remasking_temperatures(initial: float, num_steps: int) -> list[float]:
    """Return the temperature of the remasking noise at each step.

    The reference multiplies the temperature by (1 - k/K) cumulatively, which falls faster than a linear decay.
    """
    temperatures, current = [], initial
    for step in range(1, num_steps + 1):
        current *= 1.0 - step / num_steps
        temperatures.append(current)
    return temperatures
