"""Values between stages, as NumPy arrays: from and to torch's tensors, and frames from one form to the other.

A torch type that NumPy lacks travels as a structured one that says so: bfloat16 as `[("bfloat16", "<u2")]`, its bits.
So any type of NumPy's own survives the way, and torch is imported only where tensors are wanted or given.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from show1_ray.stage import FLOAT_FRAMES, FRAMES

_OF_TORCH = re.compile(r"bfloat16|float8_e\w+|float4_e\w+|complex32|u?int[1-7]|bits\w+")
"""Names of types that NumPy lacks; somebody's own structured types are called otherwise."""

EIGHT_BITS = (FRAMES, "h w c")
"""Axes of frames, and of one frame, in 8 bits."""
FLOATS = (FLOAT_FRAMES, "c h w")
"""The same as floats between -1 and 1."""


def to_array(tensor: Any) -> np.ndarray:
    """A tensor's array, in host memory."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in _of_numpy():
        return tensor.numpy()
    width = tensor.dtype.itemsize
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.view(integers[width]).numpy()
    return bits.view(np.dtype([(str(tensor.dtype).removeprefix("torch."), f"<u{width}")]))


def to_tensor(array: np.ndarray) -> Any:
    """A tensor of its own memory: that of the object store is read-only, and shared.

    Raises:
        TypeError: an array of a type that torch lacks.
    """
    import torch

    name = torch_type(array)
    if name is not None:
        return torch.from_numpy(array.view(f"<i{array.dtype.itemsize}").copy()).view(getattr(torch, name))
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def torch_type(array: np.ndarray) -> str | None:
    """The name of torch's type in an array of `to_array` if NumPy lacks it; else None."""
    names = array.dtype.names
    if names is None or len(names) != 1 or not _OF_TORCH.fullmatch(names[0]):
        return None
    return names[0] if array.dtype[0] == np.dtype(f"<u{array.dtype.itemsize}") else None


def plain_array(array: np.ndarray) -> np.ndarray:
    """The array in a type that NumPy computes with: bfloat16, and what else only torch has, becomes float32."""
    name = torch_type(array)
    if name is None:
        return array
    if name == "bfloat16":  # the upper half of a single, so that nobody waits for torch
        return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return to_tensor(array).float().numpy()


def is_finite(array: np.ndarray) -> bool:
    """Whether there are neither NaN nor infinite values; integers and text have none."""
    name = torch_type(array)
    if name == "bfloat16":
        exponents = np.uint16(0x7F80)
        return not bool(((array.view("<u2") & exponents) == exponents).any())
    numbers = plain_array(array)
    return numbers.dtype.kind not in "fc" or bool(np.isfinite(numbers).all())


def turned(array: np.ndarray, axes: str, wanted: str) -> np.ndarray:
    """Frames, or one frame, in the form that is wanted: 8 bits with channels last, or floats with channels first.

    Raises:
        ValueError: neither, or not of the same number of axes.
    """
    if axes == wanted:
        return array
    if axes in FLOATS and wanted in EIGHT_BITS:
        levels = (plain_array(array).astype(np.float32) * 0.5 + 0.5).clip(0, 1) * 255
        return np.moveaxis(levels.astype(np.uint8), 0, -1)
    if axes in EIGHT_BITS and wanted in FLOATS:
        return np.moveaxis(array.astype(np.float32) / np.float32(127.5) - 1, -1, 0)
    raise ValueError(f"{axes!r} cannot be turned into {wanted!r}")


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """C F H W in [−1, 1] → F H W C, uint8: clamped, truncated."""
    return turned(frames, FLOAT_FRAMES, FRAMES)


def _of_numpy() -> set[Any]:
    import torch

    names = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64 complex128"
    return {getattr(torch, name) for name in names.split()}
