"""UniGRPO's structured noising (MMaDA, arXiv 2505.15809, section 5.2 and Algorithm 1).

The prompt stays clean. Each response has one mask ratio t/T an update; the start t_1 is random a response and the other
updates are spread over the diffusion steps, so that a response is seen from nearly clean to nearly all noise. The
paper's text and its algorithm give two spacings: ``even`` is the worked example (start 100, 5 updates, T = 1000: 100,
300, 500, 700, 900), wrapped modulo T; ``alg1`` is the printed formula, which ends at T. ``random`` is its ablation.

Departures: t_1 is drawn once (the algorithm prints the draw twice). The tail after EOS is noised with the response, as
the sampler saw it, and never scored. The inner mean is over the scored tokens (eq. 4) by default; eq. 5's 1/|o_i| is
``normalizer="completion"``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from unigrpo.seeding import fold, uniform
from unigrpo.types import Batch, MaskDraw


def timesteps(
    start: torch.Tensor, num_updates: int, num_timesteps: int, spacing: Literal["even", "alg1"]
) -> torch.Tensor:
    """Return the diffusion timestep of every inner update.

    even: t_n = (t_1 + (n - 1) T / mu) mod T.  alg1: t_n = floor((n - 1) / (mu - 1) (T - t_1) + t_1), n = 1 .. mu.

    Args:
        start: [N] int64, t_1 in 0 .. T - 1.
        num_updates: mu.
        num_timesteps: T.
        spacing: which of the two.

    Returns:
        [mu, N] float64; the mask ratio is t / T.
    """
    update = torch.arange(num_updates, device=start.device)[:, None]
    if spacing == "even":
        return (start + update.double() * (num_timesteps / num_updates)).remainder(num_timesteps)
    return (start + (update * (num_timesteps - start)).div(max(num_updates - 1, 1), rounding_mode="floor")).double()


def noise(uniforms: torch.Tensor, mask_ratio: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    """Return [N, L] bool: open positions whose uniform is below the row's mask ratio [N]."""
    return is_open & (uniforms < mask_ratio[:, None])


def scored_weight(is_scored: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return [N, L] float64: 1 / (count_i N) at scored positions, 0 elsewhere.

    Args:
        is_scored: [N, L] bool.
        count: [N] int64: what each response's sum is divided by.
    """
    return is_scored / (count.clamp(min=1).double() * len(is_scored))[:, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class UniGRPO:
    """One row a rollout, masked at t/T of its response.

    A response with no scored position (t near 0, or short) adds 0 to the loss, stays in N and is counted.
    """

    spacing: Literal["even", "alg1", "random"] = "even"
    """How the inner updates spread over the diffusion steps."""
    num_timesteps: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """T."""
    normalizer: Literal["scored", "completion"] = "scored"
    """What a response's sum is divided by: its scored tokens, or |o_i|."""

    def mask_ratio(self, row_seeds: torch.Tensor, step: int, update: int, num_updates: int) -> torch.Tensor:
        """Return [N] float64 in [0, 1]: t/T of each response at one inner update."""
        keys = _keys("timestep", row_seeds, step)
        position = torch.zeros(1, dtype=torch.int64, device=row_seeds.device)
        draw = update if self.spacing == "random" else 0
        start = (uniform(keys, draw, position)[:, 0] * self.num_timesteps).long()
        if self.spacing == "random":
            return start.double() / self.num_timesteps
        return timesteps(start, num_updates, self.num_timesteps, self.spacing)[update] / self.num_timesteps

    def draw(self, batch: Batch, step: int, update: int, num_updates: int, mask_token_id: int) -> MaskDraw:
        """Return the noise of one inner update (see ``Estimator.draw``).

        Raises:
            ValueError: if the update is not one of the step's.
        """
        if not 0 <= update < num_updates:
            raise ValueError(f"update {update} of {num_updates}; updates count from 0")
        ratio = self.mask_ratio(batch.row_seeds, step, update, num_updates)
        positions = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device)
        uniforms = uniform(_keys("mask", batch.row_seeds, step), update, positions)
        is_masked = noise(uniforms, ratio, batch.is_completion | batch.is_tail)
        is_scored = is_masked & batch.is_completion
        counted = is_scored if self.normalizer == "scored" else batch.is_completion
        return MaskDraw(
            noisy_ids=batch.token_ids.masked_fill(is_masked, mask_token_id),
            is_scored=is_scored,
            weight=scored_weight(is_scored, counted.sum(-1)),
            rollout_index=torch.arange(len(batch.token_ids), device=batch.token_ids.device),
            mask_ratio=ratio,
            num_empty=int((~is_scored.any(-1)).sum()),
        )


def _keys(stream: str, row_seeds: torch.Tensor, step: int) -> torch.Tensor:
    return torch.tensor(_folded(stream, tuple(row_seeds.tolist()), step), dtype=torch.int64, device=row_seeds.device)


@lru_cache(maxsize=2)
def _folded(stream: str, row_seeds: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Return the key of each row; both streams of a step are kept for its other updates."""
    return tuple(fold(stream, seed, step) for seed in row_seeds)
