"""Sums, joins, gates, and images of twice or half the size."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like

from show1_ray.show1.kernels.tiles import activate, block_of

TILE = 4096
"""Values that a program works on."""


@triton.jit
def _add(
    x, y, bias, out, rows, channels, factor,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, SUM: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = r[:, None].to(tl.int64) * channels + c[None, :]
    mask = (r < rows)[:, None]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if SUM:
        value += tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + c).to(tl.float32)[None, :]
    tl.store(out + place, (value * factor).to(out.dtype.element_ty), mask=mask)


def add(x: Tensor, y: Tensor | None, bias: Tensor | None, factor: float) -> Tensor:
    """See `fused.add`: … C in and out."""
    out = empty_like(x)
    channels = x.shape[-1]
    rows, block_r, block_c = _tiles(x.numel(), channels)
    _add[(triton.cdiv(rows, block_r), channels // block_c)](
        x, y, bias, out, rows, channels, factor, BLOCK_R=block_r, BLOCK_C=block_c, SUM=y is not None,
        BIAS=bias is not None,
    )  # fmt: skip
    return out


@triton.jit
def _join(x, y, out, rows, first, second, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    begin = tl.program_id(1) * BLOCK_C
    c = begin + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None]
    line = r[:, None].to(tl.int64)
    if begin < first:
        value = tl.load(x + line * first + c[None, :], mask=mask)
    else:
        value = tl.load(y + line * second + (c - first)[None, :], mask=mask)
    tl.store(out + line * (first + second) + c[None, :], value, mask=mask)


def join(x: Tensor, y: Tensor) -> Tensor:
    """See `fused.join`: … C and … C' → … C+C'."""
    first, second = x.shape[-1], y.shape[-1]
    rows = x.numel() // first
    block_c = min(block_of(first), block_of(second))
    block_r = TILE // block_c
    out = empty((*x.shape[:-1], first + second), device=x.device, dtype=x.dtype)
    _join[(triton.cdiv(rows, block_r), (first + second) // block_c)](
        x, y, out, rows, first, second, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return out


@triton.jit
def _gated_gelu(x, out, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None]
    place = r[:, None].to(tl.int64) * channels
    value = tl.load(x + 2 * place + c[None, :], mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + 2 * place + channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place + c[None, :], (value * activate(gate, "gelu")).to(out.dtype.element_ty), mask=mask)


def gated_gelu(x: Tensor) -> Tensor:
    """See `fused.gated_gelu`: … 2C → … C."""
    channels = x.shape[-1] // 2
    out = empty((*x.shape[:-1], channels), device=x.device, dtype=x.dtype)
    rows, block_r, block_c = _tiles(out.numel(), channels, TILE // 2)
    _gated_gelu[(triton.cdiv(rows, block_r), channels // block_c)](
        x, out, rows, channels, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return out


@triton.jit
def _double(x, out, rows, width, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows are the small image's pixels: each is written four times."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None]
    value = tl.load(x + r[:, None].to(tl.int64) * channels + c[None, :], mask=mask)
    corner = (r // width).to(tl.int64) * 4 * width + 2 * (r % width)
    for i in tl.static_range(4):
        place = (corner + (i // 2) * 2 * width + i % 2)[:, None] * channels + c[None, :]
        tl.store(out + place, value, mask=mask)


def double(x: Tensor, width: int) -> Tensor:
    """Each pixel four times: N P C → N 4P C; `width` is the image's."""
    samples, pixels, channels = x.shape
    out = empty((samples, 4 * pixels, channels), device=x.device, dtype=x.dtype)
    rows, block_r, block_c = _tiles(x.numel(), channels)
    _double[(triton.cdiv(rows, block_r), channels // block_c)](
        x, out, rows, width, channels, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return out


@triton.jit
def _halve(x, out, rows, width, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows are the small image's pixels."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None]
    corner = (r // width).to(tl.int64) * 4 * width + 2 * (r % width)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for i in tl.static_range(4):
        place = (corner + (i // 2) * 2 * width + i % 2)[:, None] * channels + c[None, :]
        total += tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    place = r[:, None].to(tl.int64) * channels + c[None, :]
    tl.store(out + place, (total / 4).to(out.dtype.element_ty), mask=mask)


def halve(x: Tensor, width: int) -> Tensor:
    """The mean of each four pixels: N P C → N P/4 C; `width` is the image's, as its height a multiple of 2."""
    samples, pixels, channels = x.shape
    out = empty((samples, pixels // 4, channels), device=x.device, dtype=x.dtype)
    rows, block_r, block_c = _tiles(out.numel(), channels)
    _halve[(triton.cdiv(rows, block_r), channels // block_c)](
        x, out, rows, width // 2, channels, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return out


def _tiles(values: int, channels: int, tile: int = TILE) -> tuple[int, int, int]:
    """Rows, and the rows and channels of a program."""
    block_c = block_of(channels)
    return values // channels, tile // block_c, block_c
