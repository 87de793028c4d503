"""Operations over frames: attention and convolution."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like
from triton.tools.tensor_descriptor import TensorDescriptor

from show1_ray.show1.kernels.norms import Sums

REGISTERS = 60
"""Values of queries that a thread holds at most; as many for its result, and the rest of 255."""


@triton.jit
def _read(place, DIM: tl.constexpr, PACK: tl.constexpr):
    """A head's values, each a tensor over (pixels, heads); `PACK` of two bytes are read at once."""
    values = ()
    if PACK == 1:
        for i in tl.static_range(DIM):
            values += (tl.load(place + i).to(tl.float32),)
    else:
        words = place.to(tl.pointer_type(tl.int64 if PACK == 4 else tl.int32))
        for i in tl.static_range(DIM // PACK):
            word = tl.load(words + i)
            for j in tl.static_range(PACK):
                half = (word >> (16 * j)).to(tl.int16).to(place.dtype.element_ty, bitcast=True)
                values += (half.to(tl.float32),)
    return values


@triton.jit
def _write(place, values, mask, DIM: tl.constexpr, PACK: tl.constexpr):
    """See `_read`."""
    if PACK == 1:
        for i in tl.static_range(DIM):
            tl.store(place + i, values[i].to(place.dtype.element_ty), mask=mask)
    else:
        kind: tl.constexpr = tl.int64 if PACK == 4 else tl.int32
        words = place.to(tl.pointer_type(kind))
        for i in tl.static_range(DIM // PACK):
            word = _bits(values[i * PACK], place, kind)
            for j in tl.static_range(1, PACK):
                word |= _bits(values[i * PACK + j], place, kind) << (16 * j)
            tl.store(words + i, word, mask=mask)


@triton.jit
def _bits(value, place, kind: tl.constexpr):
    return value.to(place.dtype.element_ty).to(tl.uint16, bitcast=True).to(kind)


@triton.jit(do_not_specialize=["lanes"])
def _attend_few(
    q, k, v, out, lanes, pixels, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, FRAMES: tl.constexpr, QUERIES: tl.constexpr, PACK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A thread is one head of one pixel, whose frames it has in registers: nothing is exchanged, nothing is padded."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    lane = tl.where(inside, lane, 0)
    pixel = lane // HEADS
    row = (pixel // pixels) * FRAMES * pixels + pixel % pixels  # of frame 0
    base = row.to(tl.int64) * (HEADS * DIM) + (lane % HEADS) * DIM
    step = pixels * (HEADS * DIM)
    first = tl.program_id(1) * QUERIES
    queries = ()
    for i in tl.static_range(QUERIES):
        queries += _read(q + base + tl.minimum(first + i, FRAMES - 1) * step, DIM, PACK)
    tops, totals, results = (), (), ()
    for _ in tl.static_range(QUERIES):
        tops += (tl.full((BLOCK,), float("-inf"), tl.float32),)
        totals += (tl.zeros((BLOCK,), tl.float32),)
        for _ in tl.static_range(DIM):
            results += (tl.zeros((BLOCK,), tl.float32),)
    for j in range(FRAMES):
        key = _read(k + base + j * step, DIM, PACK)
        value = _read(v + base + j * step, DIM, PACK)
        new_tops, new_totals, new_results = (), (), ()
        for i in tl.static_range(QUERIES):
            score = queries[i * DIM] * key[0]
            for d in tl.static_range(1, DIM):
                score += queries[i * DIM + d] * key[d]
            top = tl.maximum(tops[i], score * scale)
            old, new = tl.exp(tops[i] - top), tl.exp(score * scale - top)
            new_tops += (top,)
            new_totals += (totals[i] * old + new,)
            for d in tl.static_range(DIM):
                new_results += (results[i * DIM + d] * old + new * value[d],)
        tops, totals, results = new_tops, new_totals, new_results
    for i in tl.static_range(QUERIES):
        values = ()
        for d in tl.static_range(DIM):
            values += (results[i * DIM + d] / totals[i],)
        _write(out + base + tl.minimum(first + i, FRAMES - 1) * step, values, inside, DIM, PACK)


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
    if frames >= 16:
        block_f, block_d = triton.next_power_of_2(frames), max(triton.next_power_of_2(dim), 16)
        _attend_many[(batch * pixels, heads)](
            q, k, v, out, frames, pixels, heads, dim, dim**-0.5, BLOCK_F=block_f, BLOCK_D=block_d,
            num_warps=2 if block_f <= 32 else 4,
        )  # fmt: skip
        return out
    parts = min(triton.cdiv(frames * dim, REGISTERS), frames)
    lanes = batch * pixels * heads
    pack = next(n for n in (4, 2, 1) if dim % n == 0) if q.element_size() == 2 else 1
    _attend_few[(triton.cdiv(lanes, 128), parts)](
        q, k, v, out, lanes, pixels, dim**-0.5, HEADS=heads, DIM=dim, FRAMES=frames,
        QUERIES=triton.cdiv(frames, parts), PACK=pack, BLOCK=128, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _convolve(
    x, weight, bias, residual, out, means, squares, rows, pixels, channels, out_channels,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """An implicit matrix product: rows of all frames by output channels, over taps and input channels.

    Tiles are those of tensor descriptors: a frame that is not there lies outside of its sample's rows and reads as 0.
    """
    columns, tiles, blocks = tl.cdiv(out_channels, BLOCK_N), tl.cdiv(rows, BLOCK_M), tl.cdiv(channels, BLOCK_K)
    program = tl.program_id(0)
    n, tile = (program % columns) * BLOCK_N, program // columns
    sample, row = tile // tiles, (tile % tiles) * BLOCK_M
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(TAPS * blocks):  # one loop over both, so that reads run ahead of products across taps
        tap, k = i // blocks, (i % blocks) * BLOCK_K
        a = x.load([sample, row + (tap - TAPS // 2) * pixels, k]).reshape(BLOCK_M, BLOCK_K)
        b = weight.load([n, tap * channels + k])
        total = tl.dot(a, b.T, total)
    c = n + tl.arange(0, BLOCK_N)
    r = row + tl.arange(0, BLOCK_M)
    inside = (r < rows)[:, None]
    if BIAS:
        total += tl.load(bias + c, mask=c < out_channels, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        place = (sample.to(tl.int64) * rows + r[:, None]) * out_channels + c[None, :]
        total += tl.load(residual + place, mask=inside & (c < out_channels)[None, :], other=0.0).to(tl.float32)
    value = total.to(out.dtype)
    out.store([sample, row, n], value.reshape(1, BLOCK_M, BLOCK_N))
    count = tl.minimum(BLOCK_M, rows - row)
    value = tl.where(inside, value.to(tl.float32), 0.0)
    mean = tl.sum(value, axis=0) / count
    value = tl.where(inside, value - mean[None, :], 0.0)
    place = tile.to(tl.int64) * out_channels + c
    tl.store(means + place, mean, mask=c < out_channels)
    tl.store(squares + place, tl.sum(value * value, axis=0), mask=c < out_channels)


def convolve_frames(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Sums]:
    """See `fused.convolve_frames`: B F P C → B F P C', and the result's sums.

    Args:
        x: B F P C.
        weight: C' taps C, contiguous; C and C' are multiples of 8.
        bias: C'.
        residual: B F P C', added.
    """
    batch, frames, pixels, channels = x.shape
    out_channels, taps, _ = weight.shape
    out = empty((batch, frames, pixels, out_channels), device=x.device, dtype=x.dtype)
    block_m, block_n, block_k = 128, 128 if out_channels % 128 == 0 else 64, 64
    rows = frames * pixels
    unit = pixels if pixels % block_m == 0 else rows  # tiles that lie in one frame serve norms of frames too
    sums = Sums.empty(batch * rows // unit, unit, block_m, out_channels, x.device)
    _convolve[(batch * triton.cdiv(rows, block_m) * triton.cdiv(out_channels, block_n),)](
        TensorDescriptor.from_tensor(x.flatten(1, 2), [1, block_m, block_k]),
        TensorDescriptor.from_tensor(weight.flatten(1), [block_n, block_k]),
        bias,
        residual,
        TensorDescriptor.from_tensor(out.flatten(1, 2), [1, block_m, block_n]),
        *sums.values.unbind(),
        rows, pixels, channels, out_channels, BIAS=bias is not None, RESIDUAL=residual is not None, TAPS=taps,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out, sums
