"""Counter-based randomness: a number is a function of its key, so batching, padding and resuming cannot shift it.

Nothing here touches a global generator. Uniforms come from the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)
in wrapping int64 arithmetic, the same on every device.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def fold(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that is a function of the parts and of their order."""
    digest = hashlib.blake2b("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def _signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift_right(bits: torch.Tensor, count: int) -> torch.Tensor:
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _signed(_MIX_1)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(_MIX_2)
    return bits ^ _shift_right(bits, 31)


def uniform(keys: torch.Tensor, counter: int | torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return uniforms in the open interval (0, 1).

    Args:
        keys: [N] int64, one a row (see ``fold``).
        counter: which draw of the row: a denoising step or an inner update, times the streams of the caller; [N]
            where the rows differ.
        positions: [L] or [N, L] int64.

    Returns:
        [N, L] float64, a function of (key, counter, position) only.
    """
    if isinstance(counter, int):
        turn: int | torch.Tensor = _signed(_GOLDEN_GAMMA * (2 * counter + 1))
    else:
        turn = (2 * counter.to(positions.device) + 1) * _signed(_GOLDEN_GAMMA)  # wraps to the same 64 bits
    row = _mix(keys.to(positions.device) + turn)
    bits = _mix(row[:, None] + (positions + 1) * _signed(_GOLDEN_GAMMA))
    return (_shift_right(bits, 11).double() + 0.5) * 2.0**-53
