"""Sums, joins, gates, and images of twice or half the size.

How many rows there are all in all is never specialised on: one kernel serves every batch, and computes a clip alike.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like

from show1_ray.show1.kernels.norms import Cut, Sums, keep_sums
from show1_ray.show1.kernels.tiles import activate, block_of

TILE = 4096
"""Values that a program works on."""


@triton.jit(do_not_specialize=["rows"])
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
def _added(x, y, bias, place, mask, factor, kind: tl.constexpr, BIAS: tl.constexpr):
    """Rows of the sum, rounded as they are written."""
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + tl.load(y + place, mask=mask, other=0.0)
    if BIAS:
        value += bias
    return (value * factor).to(kind)


@triton.jit
def _add_up(
    x, y, bias, out, means, squares, rows, channels, chunk_rows, chunks, factor,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, AT_ONCE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """One chunk, see `norms._sum_up`."""
    n, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = chunk * chunk_rows
    count = tl.minimum(chunk_rows, rows - first)
    begin_of_chunk = (n * rows + first) * channels
    x += begin_of_chunk
    y += begin_of_chunk
    out += begin_of_chunk
    kind: tl.constexpr = out.dtype.element_ty
    more = tl.load(bias + c).to(tl.float32)[None, :] if BIAS else 0.0
    about = _added(x, y, more, c[None, :], c[None, :] >= 0, factor, kind, BIAS).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for begin in range(0, chunk_rows, BLOCK_R * AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            r = begin + i * BLOCK_R + tl.arange(0, BLOCK_R)
            inside = (r < count)[:, None]
            place = r[:, None] * channels + c[None, :]
            value = _added(x, y, more, place, inside, factor, kind, BIAS)
            tl.store(out + place, value, mask=inside)
            value = tl.where(inside, value.to(tl.float32) - about, 0.0)
            total += value
            square += value * value
    place = (n * chunks + chunk) * channels + c
    about = tl.sum(about, axis=0)
    keep_sums(means, squares, place, about, tl.sum(total, axis=0), tl.sum(square, axis=0), count)


def add_up(x: Tensor, y: Tensor, bias: Tensor | None, factor: float) -> tuple[Tensor, Sums]:
    """`add` of N R C, with the result's sums."""
    units, rows, channels = x.shape
    out, cut = empty_like(x), Cut.of(rows, block_of(channels), inputs=2)
    sums = Sums.empty(units, rows, cut.chunk_rows, channels, x.device)
    _add_up[(units, sums.chunks, channels // cut.block_c)](
        x, y, bias, out, *sums.values.unbind(), rows, channels, cut.chunk_rows, sums.chunks, factor,
        BLOCK_R=cut.block_r, BLOCK_C=cut.block_c, AT_ONCE=cut.at_once, BIAS=bias is not None, num_warps=cut.warps,
    )  # fmt: skip
    return out, sums


@triton.jit(do_not_specialize=["rows"])
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
def _join_up(
    x, y, out, means, squares, rows, first_channels, second_channels, chunk_rows, chunks,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One chunk, see `norms._sum_up`."""
    n, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channels = first_channels + second_channels
    begin_of_block = tl.program_id(2) * BLOCK_C
    first = chunk * chunk_rows
    count = tl.minimum(chunk_rows, rows - first)
    row = n * rows + first
    c = begin_of_block + tl.arange(0, BLOCK_C)
    out += row * channels
    is_second = begin_of_block >= first_channels
    source = y + row * second_channels - first_channels if is_second else x + row * first_channels
    stride = second_channels if is_second else first_channels
    about = tl.load(source + c).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for begin in range(0, chunk_rows, BLOCK_R * AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            r = begin + i * BLOCK_R + tl.arange(0, BLOCK_R)
            inside = (r < count)[:, None]
            value = tl.load(source + r[:, None] * stride + c[None, :], mask=inside, other=0.0)
            tl.store(out + r[:, None] * channels + c[None, :], value, mask=inside)
            value = tl.where(inside, value.to(tl.float32) - about[None, :], 0.0)
            total += value
            square += value * value
    place = (n * chunks + chunk) * channels + c
    keep_sums(means, squares, place, about, tl.sum(total, axis=0), tl.sum(square, axis=0), count)


def join_up(x: Tensor, y: Tensor) -> tuple[Tensor, Sums]:
    """`join` of N R C and N R C', with the result's sums."""
    units, rows, first = x.shape
    second = y.shape[2]
    cut = Cut.of(rows, min(block_of(first), block_of(second)))
    out = empty((units, rows, first + second), device=x.device, dtype=x.dtype)
    sums = Sums.empty(units, rows, cut.chunk_rows, first + second, x.device)
    _join_up[(units, sums.chunks, (first + second) // cut.block_c)](
        x, y, out, *sums.values.unbind(), rows, first, second, cut.chunk_rows, sums.chunks,
        BLOCK_R=cut.block_r, BLOCK_C=cut.block_c, AT_ONCE=cut.at_once, num_warps=cut.warps,
    )  # fmt: skip
    return out, sums


@triton.jit(do_not_specialize=["rows"])
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


@triton.jit(do_not_specialize=["rows"])
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


@triton.jit(do_not_specialize=["rows"])
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
