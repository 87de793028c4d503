"""Group normalisation and layer normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor, device, empty, empty_like, float32

from show1_ray.show1.kernels.tiles import activate, block_of

LARGE, SMALL = (8192, 2, 512, 8), (2048, 4, 256, 4)
"""How sums are taken: values of a read, reads under way before the first is used, rows of a chunk, warps."""


@dataclass(frozen=True)
class Sums:
    """Means of channels and sums of squares about them, of chunks of rows: what a group norm must know of its input.

    Attributes:
        values: 2 units chunks C.
        rows: rows of a unit (a frame, a clip).
        chunk_rows: rows of a chunk; a unit's last may have fewer.
    """

    values: Tensor
    rows: int
    chunk_rows: int

    @classmethod
    def empty(cls, units: int, rows: int, chunk_rows: int, channels: int, where: device) -> Sums:
        """Room for those of units · rows · channels values."""
        chunks = triton.cdiv(rows, chunk_rows)
        return cls(empty((2, units, chunks, channels), device=where, dtype=float32), rows, chunk_rows)

    @property
    def chunks(self) -> int:
        """Chunks of a unit."""
        return self.values.shape[2]

    def fit(self, x: Tensor) -> bool:
        """Whether they are of N R C and no unit lies in two samples."""
        samples, rows, channels = x.shape
        units = samples * rows // self.rows
        return rows % self.rows == 0 and self.values.shape[1:] == (units, self.chunks, channels)


@dataclass(frozen=True)
class Cut:
    """How a pass that takes sums goes over a unit's rows: by the unit alone, so that a batch does not change a clip."""

    block_r: int
    block_c: int
    at_once: int
    chunk_rows: int
    warps: int

    @classmethod
    def of(cls, rows: int, block_c: int, inputs: int = 1) -> Cut:
        """Of a pass that reads `inputs` tensors: as many values at once in all."""
        tile, at_once, chunk_rows, warps = LARGE if rows >= LARGE[2] else SMALL
        block_r = tile // inputs // block_c
        return cls(block_r, block_c, at_once, max(chunk_rows, block_r * at_once), warps)


@triton.jit
def keep_sums(means, squares, place, about, total, square, count):
    """From sums of differences to `about`, and of their squares, to what `Sums` has."""
    tl.store(means + place, about + total / count)
    tl.store(squares + place, square - total * total / count)


@triton.jit
def _sum_up(
    x, means, squares, rows, channels, chunk_rows, chunks,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One chunk, about its first row (so that sums stay precise).

    Tiles are copied to shared memory ahead: of plain loads behind a mask, with nothing between them but sums, ptxas
    lets each wait for the one before (1.6 of 4.3 TB/s).
    """
    n, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = chunk * chunk_rows
    count = tl.minimum(chunk_rows, rows - first)
    x += (n * rows + first) * channels
    about = tl.load(x + c).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for begin in tl.range(0, chunk_rows, BLOCK_R, num_stages=AT_ONCE + 2):
        r = begin + tl.arange(0, BLOCK_R)
        inside = (r < count)[:, None]
        value = tl.load(x + r[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - about[None, :], 0.0)
        total += value
        square += value * value
    place = (n * chunks + chunk) * channels + c
    keep_sums(means, squares, place, about, tl.sum(total, axis=0), tl.sum(square, axis=0), count)


@triton.jit
def _to_factors(
    means, squares, weight, bias, before, film, scales, shifts,
    rows, channels, chunks, unit_rows, unit_chunks, chunk_rows, size, before_stride, eps,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr, FILM: tl.constexpr,
):  # fmt: skip
    """From a group's sums to what each of its channels is multiplied by, and what is added then."""
    n, group = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, BLOCK_C)
    inside = i < size
    c = group * size + i
    total = tl.zeros((BLOCK_C,), tl.float32)
    square = tl.zeros((BLOCK_C,), tl.float32)
    begin_of_sample = n.to(tl.int64) * chunks * channels
    about = tl.load(means + begin_of_sample + c, mask=inside, other=0.0)
    for begin in range(0, chunks, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        place = begin_of_sample + k[:, None].to(tl.int64) * channels + c[None, :]
        mask = (k < chunks)[:, None] & inside[None, :]
        count = tl.minimum(chunk_rows, unit_rows - (k % unit_chunks) * chunk_rows).to(tl.float32)[:, None]
        mean = tl.where(mask, tl.load(means + place, mask=mask, other=0.0) - about[None, :], 0.0)
        total += tl.sum(count * mean, axis=0)
        square += tl.sum(tl.load(squares + place, mask=mask, other=0.0) + count * mean * mean, axis=0)
    middle = about + total / rows
    if BEFORE:
        added = tl.load(before + n * before_stride + c, mask=inside, other=0.0).to(tl.float32)
        middle += added
    mean = tl.sum(tl.where(inside, middle, 0.0), axis=0) / size
    spread = square - total * total / rows + rows * (middle - mean) * (middle - mean)
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
    sums: Sums | None = None,
) -> Tensor:
    """See `fused.group_norm`: N R C in and out, R · C less than 2^31. `sums` of x save a reading."""
    samples, rows, channels = x.shape
    if sums is None or not sums.fit(x):
        sums = _sums_of(x)
    scales, shifts = empty((2, samples, channels), device=x.device, dtype=float32).unbind()
    size = channels // groups
    block_size = triton.next_power_of_2(size)
    _to_factors[(samples, groups)](
        *sums.values.unbind(), weight, bias, before, film, scales, shifts,
        rows, channels, rows // sums.rows * sums.chunks, sums.rows, sums.chunks, sums.chunk_rows, size,
        0 if before is None or before.dim() == 1 else channels, eps, BLOCK_K=max(32, 2048 // block_size),
        BLOCK_C=block_size, BEFORE=before is not None, FILM=film is not None,
    )  # fmt: skip
    out = empty_like(x)
    block_c = block_of(channels)
    block_r, repeat = 2048 // block_c, 4
    _apply[(triton.cdiv(rows, block_r * repeat), samples, channels // block_c)](
        x, out, scales, shifts, rows, channels, ACTIVATION=activation, BLOCK_R=block_r, BLOCK_C=block_c, REPEAT=repeat
    )
    return out


def _sums_of(x: Tensor) -> Sums:
    samples, rows, channels = x.shape
    cut = Cut.of(rows, block_of(channels))
    sums = Sums.empty(samples, rows, cut.chunk_rows, channels, x.device)
    _sum_up[(samples, sums.chunks, channels // cut.block_c)](
        x, *sums.values.unbind(), rows, channels, cut.chunk_rows, sums.chunks,
        BLOCK_R=cut.block_r, BLOCK_C=cut.block_c, AT_ONCE=cut.at_once, num_warps=cut.warps,
    )  # fmt: skip
    return sums


@triton.jit(do_not_specialize=["rows"])
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
