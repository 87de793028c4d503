"""Shared by the kernels: activations, and how channels are cut into tiles."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, activation: tl.constexpr):
    """SiLU, GELU or nothing. GELU's error function is Abramowitz and Stegun's 7.1.26, within 1.5e-7: CUDA's own takes
    longer than reading and writing the value."""
    if activation == "silu":
        x = x / (1 + tl.exp(-x))
    elif activation == "gelu":
        u = tl.abs(x) * 0.7071067811865476
        t = 1 / (1 + 0.3275911 * u)
        rest = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        rest *= tl.exp(-u * u)
        x = 0.5 * x * tl.where(x < 0, rest, 2 - rest)
    return x


def block_of(channels: int) -> int:
    """The largest power of 2 that divides the channels, 256 at most."""
    return min(channels & -channels, 256)
