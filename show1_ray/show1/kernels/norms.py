"""Group normalisation and layer normalisation."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like, float32

from show1_ray.show1.kernels.tiles import activate, block_of

LARGE, SMALL = (8192, 2, 512, 8), (2048, 4, 256, 4)
"""How sums are taken: values of a read, reads under way before the first is used, rows of a program, its warps."""
ENOUGH = 600
"""Programs from which on an input is large: some for each of a GPU's multiprocessors."""


@triton.jit
def _sum_up(
    x, sums, squares, rows, channels, chunk_rows, chunks,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Sums and sums of squares by channel of one chunk, about the sample's first row (so that they stay precise)."""
    n, chunk = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += n.to(tl.int64) * rows * channels
    about = tl.load(x + c).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    first = chunk * chunk_rows
    for begin in range(0, chunk_rows, BLOCK_R * AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            r = first + begin + i * BLOCK_R + tl.arange(0, BLOCK_R)
            inside = (r < rows)[:, None]
            value = tl.load(x + r[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value - about, 0.0)
            total += value
            square += value * value
    place = (n * chunks + chunk).to(tl.int64) * channels + c
    tl.store(sums + place, tl.sum(total, axis=0))
    tl.store(squares + place, tl.sum(square, axis=0))


@triton.jit
def _to_factors(
    x, sums, squares, weight, bias, before, film, scales, shifts, rows, channels, chunks, size, before_stride, eps,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr, FILM: tl.constexpr,
):  # fmt: skip
    """From a group's sums to what each of its channels is multiplied by, and what is added then."""
    n, group = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, BLOCK_C)
    inside = i < size
    c = group * size + i
    total = tl.zeros((BLOCK_C,), tl.float32)
    square = tl.zeros((BLOCK_C,), tl.float32)
    for begin in range(0, chunks, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        place = (n * chunks + k[:, None]).to(tl.int64) * channels + c[None, :]
        mask = (k < chunks)[:, None] & inside[None, :]
        total += tl.sum(tl.load(sums + place, mask=mask, other=0.0), axis=0)
        square += tl.sum(tl.load(squares + place, mask=mask, other=0.0), axis=0)
    means = tl.load(x + n.to(tl.int64) * rows * channels + c, mask=inside, other=0.0).to(tl.float32) + total / rows
    if BEFORE:
        added = tl.load(before + n * before_stride + c, mask=inside, other=0.0).to(tl.float32)
        means += added
    mean = tl.sum(tl.where(inside, means, 0.0), axis=0) / size
    spread = square - total * total / rows + rows * (means - mean) * (means - mean)
    variance = tl.sum(tl.where(inside, spread, 0.0), axis=0) / (rows * size)
    scale = tl.rsqrt(variance + eps) * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32) - mean * scale
    if BEFORE:
        shift += added * scale
    if FILM:
        place = n * 2 * channels + c
        factor = 1 + tl.load(film + place, mask=inside, other=0.0).to(tl.float32)
        scale *= factor
        shift = shift * factor + tl.load(film + place + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(scales + n * channels + c, scale, mask=inside)
    tl.store(shifts + n * channels + c, shift, mask=inside)


@triton.jit
def _apply(
    x, out, scales, shifts, rows, channels,
    ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, REPEAT: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += n.to(tl.int64) * rows * channels
    out += n.to(tl.int64) * rows * channels
    scale = tl.load(scales + n * channels + c)[None, :]
    shift = tl.load(shifts + n * channels + c)[None, :]
    for i in tl.static_range(REPEAT):
        r = (tl.program_id(0) * REPEAT + i) * BLOCK_R + tl.arange(0, BLOCK_R)
        place = r[:, None] * channels + c[None, :]
        mask = (r < rows)[:, None]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        value = activate(value * scale + shift, ACTIVATION)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str = "",
    before: Tensor | None = None,
    film: Tensor | None = None,
) -> Tensor:
    """See `fused.group_norm`: N R C in and out, R · C less than 2^31."""
    samples, rows, channels = x.shape
    block_c = block_of(channels)
    parts = channels // block_c
    tile, at_once, chunk_rows, warps = LARGE if x.numel() // block_c >= ENOUGH * LARGE[2] else SMALL
    block_r = tile // block_c
    chunk_rows = max(chunk_rows, block_r * at_once)
    chunks = triton.cdiv(rows, chunk_rows)
    sums, squares = empty((2, samples, chunks, channels), device=x.device, dtype=float32).unbind()
    scales, shifts = empty((2, samples, channels), device=x.device, dtype=float32).unbind()
    _sum_up[(samples, chunks, parts)](
        x, sums, squares, rows, channels, chunk_rows, chunks, BLOCK_R=block_r, BLOCK_C=block_c, AT_ONCE=at_once,
        num_warps=warps,
    )  # fmt: skip
    size = channels // groups
    block_size = triton.next_power_of_2(size)
    _to_factors[(samples, groups)](
        x, sums, squares, weight, bias, before, film, scales, shifts, rows, channels, chunks, size,
        0 if before is None or before.dim() == 1 else channels, eps, BLOCK_K=max(32, 2048 // block_size),
        BLOCK_C=block_size, BEFORE=before is not None, FILM=film is not None,
    )  # fmt: skip
    out = empty_like(x)
    block_r, repeat = 2048 // block_c, 4
    _apply[(triton.cdiv(rows, block_r * repeat), samples, parts)](
        x, out, scales, shifts, rows, channels, ACTIVATION=activation, BLOCK_R=block_r, BLOCK_C=block_c, REPEAT=repeat
    )
    return out


@triton.jit
def _layer_norm(x, out, weight, bias, rows, channels, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    wide = (c < channels)[None, :]
    place = r[:, None].to(tl.int64) * channels + c[None, :]
    mask = (r < rows)[:, None] & wide
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value = tl.where(wide, value - (tl.sum(value, axis=1) / channels)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / channels + eps)[:, None]
    factor = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, (value * scale * factor + shift).to(out.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation (Ba et al., arXiv 1607.06450): … C in and out, C some thousands at most."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, 4096 // block_c)
    out = empty_like(x)
    _layer_norm[(triton.cdiv(rows, block_r),)](
        x, out, weight, bias, rows, channels, eps, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return out
