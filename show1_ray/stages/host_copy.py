"""Networks that leave a GPU and come back: their weights stay in pinned host memory, in one block."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

ALIGNMENT = 256
"""Alignment of tensors in the block, in bytes, as in CUDA's own allocations."""


class HostCopy:
    """Copies of networks' weights in one block of host memory, page-locked where there is CUDA.

    The first time that they leave the device, weights are copied to the block. They come back by one copy of the whole
    block, at the full rate of the bus; from then on leaving costs nothing, since weights do not change. Wherever the
    networks are, they can be run.

    Args:
        networks: on one device; a weight that several share stays shared.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
        self.tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self._places = [(tensor.dtype, tensor.shape, _stride(tensor)) for tensor in self.tensors]
        self._block: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return sum(_room(tensor) for tensor in self.tensors)

    def leave(self) -> None:
        """To host memory; the device's is free afterwards.

        Raises:
            RuntimeError: CUDA could not lock the pages.
        """
        if self._block is None:
            self._block = _pinned(self.nbytes)
            for tensor, place in zip(self.tensors, self._views(self._block), strict=True):
                place.copy_(tensor.data, non_blocking=True)
            _synchronise(self.tensors)
        self._set(self._block)

    def enter(self, device: str | torch.device) -> None:
        """Back to a device, from where `leave` put them."""
        if self._block is None:
            raise ValueError("these weights have not left their device")
        self._set(self._block.to(device, non_blocking=True, copy=True))
        _synchronise(self.tensors)

    def _set(self, block: Tensor) -> None:
        for tensor, place in zip(self.tensors, self._views(block), strict=True):
            tensor.data = place

    def _views(self, block: Tensor) -> list[Tensor]:
        views, begin = [], 0
        for tensor, (dtype, shape, stride) in zip(self.tensors, self._places, strict=True):
            flat = block[begin : begin + prod(shape) * dtype.itemsize].view(dtype)
            views.append(flat.as_strided(shape, stride))
            begin += _room(tensor)
        return views


def _stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own if it leaves no gaps (channels-last stays so), else that of a contiguous one."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.stride() if reach == tensor.numel() else torch.empty(tensor.shape, device="meta").stride()


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _pinned(nbytes: int) -> Tensor:
    """Bytes of host memory. torch's own pinned memory comes in powers of two: up to twice what is needed."""
    block = torch.empty(nbytes, dtype=torch.uint8)
    if torch.cuda.is_available() and nbytes:
        runtime = torch.cuda.cudart()
        torch.cuda.check_error(runtime.cudaHostRegister(block.data_ptr(), nbytes, 0))
        weakref.finalize(block.untyped_storage(), runtime.cudaHostUnregister, block.data_ptr())
    return block


def _synchronise(tensors: Iterable[Tensor]) -> None:
    if torch.cuda.is_available() and any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()
