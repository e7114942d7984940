"""Rotary position embedding: half-split rotation in float32, tables that grow with the longest row."""

from __future__ import annotations

import torch
from torch import Tensor

TABLE_STEP = 256
"""The tables grow in steps of this many positions."""


def rotate(heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Return [N, L, H, W] rotated in float32: pairs (i, i + R/2) of the first R = ``cos.shape[-1]`` components.

    ``cos`` is [L, 1, R] or [N, L, 1, R]; ``signed_sin`` as it, negative in its first half.
    """
    width = cos.shape[-1]
    wide = heads[..., :width].float()
    turned = (wide * cos).addcmul_(wide.roll(width // 2, dims=-1), signed_sin).to(heads.dtype)
    return turned if width == heads.shape[-1] else torch.cat((turned, heads[..., width:]), dim=-1)


class RotaryTables:
    """Cosine and signed sine of every position so far asked for, kept per device."""

    def __init__(self, width: int, theta: float) -> None:
        """Take the number of components that turn, and the base of their wavelengths."""
        self.width, self.theta = width, theta
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def of(self, positions: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tables of hidden states [N, L, D] at positions [N, L]; None is 0..L-1."""
        return self.first(hidden.shape[1], hidden.device) if positions is None else self.at(positions)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return [..., L, 1, R] of integer positions [..., L], in float32."""
        exponents = torch.arange(0, self.width, 2, device=positions.device, dtype=torch.float32) / self.width
        angles = (positions.float()[..., None] * (1.0 / self.theta**exponents))[..., None, :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def first(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return [L, 1, R] of the positions 0..length-1."""
        tables = self._tables.get(device)
        if tables is None or tables[0].shape[0] < length:
            # Tables made inside inference mode could not be saved for a later backward.
            with torch.inference_mode(False), torch.no_grad():
                rounded = -(-length // TABLE_STEP) * TABLE_STEP
                tables = self.at(torch.arange(rounded, device=device))
            self._tables[device] = tables
        return tables[0][:length], tables[1][:length]
