"""Small networks in loops: all their kernels are launched at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Replay(nn.Module):
    """A network that is called again and again with inputs of the same shapes, as a CUDA graph.

    Launching the thousands of kernels of a UNet takes a CPU longer than a GPU needs for one frame. The first call of
    each shape goes as always (kernels are compiled, libraries choose theirs), the second is recorded, and from then on
    inputs are copied to where the record reads them. A record has the addresses of weights, and memory of its own: make
    one of these for each loop, and `release` it at its end.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._records: dict[Any, _Record | None] = {}

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """As the network's, whose output is a tensor or has a `sample`; its inputs are tensors."""
        key = (*named, *((tensor.shape, tensor.dtype) for tensor in (*inputs, *named.values())))
        if key not in self._records:
            self._records[key] = None
            return _call(self.network, inputs, named)
        record = self._records[key] = self._records[key] or _Record(self.network, inputs, named)
        return record(inputs, named)

    def release(self) -> None:
        """Forgets the records and gives their memory back, which torch would keep for no one."""
        self._records.clear()
        torch.cuda.empty_cache()


class _Record:
    """One call as a graph, with the tensors that it reads and the one that it writes."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in (*inputs, *named.values())]
        self.graph = torch.cuda.CUDAGraph()
        stream = _recording_stream(self.inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.graph.capture_begin(capture_error_mode="thread_local")  # a thread beside this one copies noise
            places = self.inputs[: len(inputs)], dict(zip(named, self.inputs[len(inputs) :], strict=True))
            self.output = _call(network, *places)
            self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
        for place, tensor in zip(self.inputs, (*inputs, *named.values()), strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return self.output.clone()


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: cuBLAS keeps a workspace for each stream that it has ever worked on."""
    return torch.cuda.Stream(device)


def _call(network: nn.Module, inputs: Any, named: Any) -> Tensor:
    output = network(*inputs, **named)
    return output if isinstance(output, Tensor) else output.sample
