"""Triton kernels for what video UNets do most beside convolutions, on frames that lie with channels last.

Each reads what it needs once and writes once; torch's own take several passes (group normalisation, FiLM and
activation) or work on tiles that are mostly padding (attention over 8 frames in tiles of 128). They take rows: (N R C)
or (B F P C), contiguous, and compute in single precision. `fused.py` calls them and has the same in plain torch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like, float32

CHUNKS = 256
"""Parts of a sample's rows that are summed up side by side, at most."""


@triton.jit
def _activate(x, activation: tl.constexpr):
    if activation == "silu":
        x = x * tl.sigmoid(x)
    elif activation == "gelu":
        x = 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))
    return x


@triton.jit
def _sum_up(x, sums, squares, rows, channels, chunk_rows, chunks, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums and sums of squares by channel of one chunk, about the sample's first row (so that they stay precise)."""
    n, chunk = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += n.to(tl.int64) * rows * channels
    about = tl.load(x + c).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    first = chunk * chunk_rows
    for begin in range(0, chunk_rows, BLOCK_R):
        r = first + begin + tl.arange(0, BLOCK_R)
        inside = (r < first + chunk_rows) & (r < rows)
        value = tl.load(x + r[:, None].to(tl.int64) * channels + c[None, :], mask=inside[:, None], other=0.0)
        value = tl.where(inside[:, None], value.to(tl.float32) - about[None, :], 0.0)
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
    for i in range(REPEAT):
        r = (tl.program_id(0) * REPEAT + i) * BLOCK_R + tl.arange(0, BLOCK_R)
        place = r[:, None].to(tl.int64) * channels + c[None, :]
        mask = (r < rows)[:, None]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        value = _activate(value * scale + shift, ACTIVATION)
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
    """See `fused.group_norm`: N R C in and out."""
    samples, rows, channels = x.shape
    block_c = _block(channels)
    block_r = 4096 // block_c
    chunk_rows = max(256, -(-rows // CHUNKS))
    chunks = -(-rows // chunk_rows)
    sums, squares = empty((2, samples, chunks, channels), device=x.device, dtype=float32).unbind()
    scales, shifts = empty((2, samples, channels), device=x.device, dtype=float32).unbind()
    parts = channels // block_c
    _sum_up[(samples, chunks, parts)](
        x, sums, squares, rows, channels, chunk_rows, chunks, BLOCK_R=block_r, BLOCK_C=block_c
    )
    size = channels // groups
    block_size = triton.next_power_of_2(size)
    _to_factors[(samples, groups)](
        x, sums, squares, weight, bias, before, film, scales, shifts, rows, channels, chunks, size,
        0 if before is None or before.dim() == 1 else channels, eps, BLOCK_K=32, BLOCK_C=block_size,
        BEFORE=before is not None, FILM=film is not None,
    )  # fmt: skip
    out = empty_like(x)
    repeat = 4
    _apply[(triton.cdiv(rows, block_r * repeat), samples, parts)](
        x, out, scales, shifts, rows, channels, ACTIVATION=activation, BLOCK_R=block_r, BLOCK_C=block_c, REPEAT=repeat
    )
    return out


@triton.jit
def _attend_few(
    q, k, v, out, frames, pixels, heads, dim, scale,
    BLOCK_H: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """A pixel's frames, `BLOCK_H` heads: softmax over keys as they come."""
    pixel = tl.program_id(0).to(tl.int64)
    row = (pixel // pixels) * frames * pixels + pixel % pixels  # of frame 0
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    f = tl.arange(0, BLOCK_F)
    d = tl.arange(0, BLOCK_D)
    width = heads * dim
    column = h[:, None] * dim + d[None, :]
    seen = (h < heads)[:, None] & (d < dim)[None, :]
    place = (row + f[None, :, None] * pixels) * width + column[:, None, :]
    mask = seen[:, None, :] & (f < frames)[None, :, None]
    query = tl.load(q + place, mask=mask, other=0.0).to(tl.float32) * scale
    top = tl.full((BLOCK_H, BLOCK_F), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H, BLOCK_F), tl.float32)
    result = tl.zeros((BLOCK_H, BLOCK_F, BLOCK_D), tl.float32)
    for j in tl.static_range(FRAMES):
        at = (row + j * pixels) * width + column
        key = tl.load(k + at, mask=seen, other=0.0).to(tl.float32)
        value = tl.load(v + at, mask=seen, other=0.0).to(tl.float32)
        score = tl.sum(query * key[:, None, :], axis=2)
        higher = tl.maximum(top, score)
        old, new = tl.exp(top - higher), tl.exp(score - higher)
        total = total * old + new
        result = result * old[:, :, None] + new[:, :, None] * value[:, None, :]
        top = higher
    tl.store(out + place, (result / total[:, :, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _attend_many(q, k, v, out, frames, pixels, heads, dim, scale, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr):
    """A pixel's frames, one head, as matrix products."""
    pixel = tl.program_id(0).to(tl.int64)
    row = (pixel // pixels) * frames * pixels + pixel % pixels
    f = tl.arange(0, BLOCK_F)
    d = tl.arange(0, BLOCK_D)
    place = (row + f[:, None] * pixels) * heads * dim + tl.program_id(1) * dim + d[None, :]
    mask = (f < frames)[:, None] & (d < dim)[None, :]
    query = tl.load(q + place, mask=mask, other=0.0)
    key = tl.load(k + place, mask=mask, other=0.0)
    value = tl.load(v + place, mask=mask, other=0.0)
    score = tl.dot(query, tl.trans(key)) * scale
    score = tl.where((f < frames)[None, :], score, float("-inf"))
    score = tl.exp(score - tl.max(score, axis=1)[:, None])
    total = tl.sum(score, axis=1)
    result = tl.dot(score.to(value.dtype), value) / total[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)


def attend_frames(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """See `fused.attend_frames`: B F P C in and out."""
    batch, frames, pixels, width = q.shape
    dim = width // heads
    out = empty_like(q)
    shape = (frames, pixels, heads, dim, dim**-0.5)
    block_f, block_d = triton.next_power_of_2(frames), triton.next_power_of_2(dim)
    if frames >= 16:
        block_d = max(block_d, 16)
        _attend_many[(batch * pixels, heads)](
            q, k, v, out, *shape, BLOCK_F=block_f, BLOCK_D=block_d, num_warps=2 if block_f <= 32 else 4
        )
        return out
    block_h = max(1, min(triton.next_power_of_2(heads), 2048 // (block_f * block_d)))
    _attend_few[(batch * pixels, triton.cdiv(heads, block_h))](
        q, k, v, out, *shape, BLOCK_H=block_h, BLOCK_F=block_f, BLOCK_D=block_d, FRAMES=frames, num_warps=4
    )
    return out


@triton.jit
def _convolve(
    x, weight, bias, out, rows, frames, pixels, channels, out_channels,
    BIAS: tl.constexpr, TAPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """An implicit matrix product: rows of all frames by output channels, over taps and input channels."""
    columns = tl.cdiv(out_channels, BLOCK_N)
    program = tl.program_id(0)
    r = (program // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    frame = (r // pixels) % frames
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks = tl.cdiv(channels, BLOCK_K)
    for i in range(TAPS * blocks):  # one loop over both, so that loads run ahead of products across taps
        tap, at = i // blocks, (i % blocks) * BLOCK_K + k
        step = tap - TAPS // 2
        there = (r < rows) & (frame + step >= 0) & (frame + step < frames)
        line = x + (r + step * pixels)[:, None].to(tl.int64) * channels
        kernel = weight + (n[None, :] * TAPS + tap) * channels
        a = tl.load(line + at[None, :], mask=there[:, None] & (at < channels)[None, :], other=0.0)
        b = tl.load(kernel + at[:, None], mask=(n < out_channels)[None, :] & (at < channels)[:, None], other=0.0)
        total = tl.dot(a, b, total)
    if BIAS:
        total += tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)[None, :]
    place = r[:, None].to(tl.int64) * out_channels + n[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(r < rows)[:, None] & (n < out_channels)[None, :])


def convolve_frames(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `fused.convolve_frames`: B F P C → B F P C'; the kernel C' taps C, contiguous."""
    batch, frames, pixels, channels = x.shape
    out_channels, taps, _ = weight.shape
    out = empty((batch, frames, pixels, out_channels), device=x.device, dtype=x.dtype)
    rows = batch * frames * pixels
    block_n = 128 if out_channels % 128 == 0 else 64
    grid = (triton.cdiv(rows, 128) * triton.cdiv(out_channels, block_n),)
    _convolve[grid](
        x, weight, bias, out, rows, frames, pixels, channels, out_channels, BIAS=bias is not None, TAPS=taps,
        BLOCK_M=128, BLOCK_N=block_n, BLOCK_K=64, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


@triton.jit
def _add(x, y, bias, out, rows, channels, factor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BIAS: tl.constexpr):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = r[:, None].to(tl.int64) * channels + c[None, :]
    mask = (r < rows)[:, None]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + c).to(tl.float32)[None, :]
    tl.store(out + place, (value * factor).to(out.dtype.element_ty), mask=mask)


def add(x: Tensor, y: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """See `fused.add`: … C in and out."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    block_c = _block(channels)
    block_r = 4096 // block_c
    out = empty_like(x)
    _add[(triton.cdiv(rows, block_r), channels // block_c)](
        x, y, bias, out, rows, channels, factor, BLOCK_R=block_r, BLOCK_C=block_c, BIAS=bias is not None
    )
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
    block_c = min(_block(first), _block(second))
    block_r = 4096 // block_c
    out = empty((*x.shape[:-1], first + second), device=x.device, dtype=x.dtype)
    _join[(triton.cdiv(rows, block_r), (first + second) // block_c)](
        x, y, out, rows, first, second, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return out


def _block(channels: int) -> int:
    """The largest power of 2 that divides the channels, 256 at most."""
    return min(channels & -channels, 256)
